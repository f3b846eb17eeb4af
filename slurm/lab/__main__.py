"""`python -P -m lockstep slurm.lab`."""

from slurm.lab.cli import main

main()
