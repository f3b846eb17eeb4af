"""The run directory: its paths, the records in it, and the code that a run is made of."""
