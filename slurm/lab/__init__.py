"""A real SLURM cluster of several nodes on one machine, for tests and for trying things out."""

from slurm.lab.lab import Lab

__all__ = ["Lab"]
