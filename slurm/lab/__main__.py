"""`python -P -m lockstep slurm.lab`."""

from slurm.lab.cli import run_lab_command

run_lab_command()
