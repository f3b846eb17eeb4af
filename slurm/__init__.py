"""SLURM's own words: request, site profile, states, queries."""
