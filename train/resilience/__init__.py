"""Signals, signs of life, failure reports and skipped steps."""
