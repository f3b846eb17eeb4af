"""`python -m slurm.lab`."""

from slurm.lab.cli import main

main()
