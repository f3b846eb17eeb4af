"""What lies on disk and everyone agrees on: run directory, dataset, checkpoints."""
