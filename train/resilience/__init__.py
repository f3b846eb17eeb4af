"""Stop signals, heartbeats, people's requests, the watchdog, failure reports and skipped steps."""
