"""One question to SLURM that has to be answered."""

import os
import subprocess

from configs.errors import LockstepError, UserError

PATIENCE = 60  # seconds
_NO_CLUSTER = "configuration source"  # no slurm.conf, and no name server that knows of one


def ask(*command: str) -> str:
    """What this command of SLURM's prints.

    Raises UserError where there is no cluster on this machine, LockstepError where it does not answer.
    """
    environment = {key: value for key, value in os.environ.items() if not key.startswith("SINFO_")}
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE, env=environment)
    except FileNotFoundError as error:
        raise _no_cluster(str(error)) from None
    except subprocess.TimeoutExpired:
        raise _no_answer(command, f"nothing in {PATIENCE} s") from None
    words = " ".join((done.stderr or done.stdout).split())
    if done.returncode and _NO_CLUSTER in words:
        raise _no_cluster(words)
    if done.returncode:
        raise _no_answer(command, words)
    return done.stdout


def _no_cluster(words: str) -> UserError:
    cure = "work on a login node, or train here with --local"
    return UserError(f"no SLURM cluster answers on this machine ({words}): {cure}")


def _no_answer(command: tuple[str, ...], words: str) -> LockstepError:
    return LockstepError(f"SLURM does not answer '{' '.join(command)}': {words}; try again when it does")
