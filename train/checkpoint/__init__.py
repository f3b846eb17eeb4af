"""Saving, resuming and exporting a run's state."""
