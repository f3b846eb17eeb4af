"""The models that are trained, loaded by the libraries' own code."""
