"""What people ask of a run that exists: stop, save, cancel, prune, export."""
