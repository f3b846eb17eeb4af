"""The only callers of SLURM's commands that look at jobs, nodes and partitions, and change jobs."""
