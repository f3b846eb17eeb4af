"""What a dataset holds: its samples in their fixed order."""
