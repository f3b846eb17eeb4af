"""One question to SLURM, put the same way by whoever asks."""

import os
import subprocess
from collections.abc import Sequence

from configs.errors import LockstepError, UserError

PATIENCE = 30  # seconds for one answer
_FILTERS = ("SQUEUE_", "SACCT_", "SINFO_", "SLURM_CLUSTERS", "SLURM_TIME_FORMAT")  # a person's own would hide jobs
_NO_CLUSTER = "configuration source"  # no slurm.conf, and no name server that knows of one


def run_slurm_command(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run this command of SLURM's without a person's own filters, for PATIENCE at most. Raises as subprocess does."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(_FILTERS)}
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE, env=environment)


def query_slurm(*command: str) -> str:
    """What this command of SLURM's prints, where it has to answer.

    Raises UserError where there is no cluster on this machine, LockstepError where it does not answer.
    """
    try:
        done = run_slurm_command(command)
    except FileNotFoundError as error:
        raise _no_cluster(str(error)) from None
    except subprocess.TimeoutExpired:
        raise _no_answer(command, f"nothing in {PATIENCE} s") from None
    message = " ".join((done.stderr or done.stdout).split())
    if done.returncode and _NO_CLUSTER in message:
        raise _no_cluster(message)
    if done.returncode:
        raise _no_answer(command, message)
    return done.stdout


def _no_cluster(message: str) -> UserError:
    cure = "work on a login node, or train here with --local"
    return UserError(f"no SLURM cluster answers on this machine ({message}): {cure}")


def _no_answer(command: tuple[str, ...], message: str) -> LockstepError:
    return LockstepError(f"SLURM does not answer '{' '.join(command)}': {message}; try again when it does")
