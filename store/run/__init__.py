"""The run directory: its paths, the records in it, the code that a run is made of, and what a rank is told of GPUs."""
