"""This machine: ranks that are started, watched and ended here, without SLURM."""
