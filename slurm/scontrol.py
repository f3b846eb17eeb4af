"""What the batch shell tells SLURM about its own job."""

import os
import re
import subprocess
import time

from configs.errors import LockstepError

PATIENCE = 60  # seconds for one answer; a controller that restarts is back by then


def job_id() -> str:
    """This job as scontrol takes it: in an array plain SLURM_JOB_ID of one task may mean the whole array."""
    if array := os.environ.get("SLURM_ARRAY_JOB_ID"):
        return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return os.environ["SLURM_JOB_ID"]


def hostnames(nodes: str) -> list[str]:
    """`node[1-3]` as single names."""
    return _scontrol("show", "hostnames", nodes).split()


def state(job: str) -> str:
    """RUNNING, CANCELLED, …"""
    found = re.search(r"JobState=(\w+)", _scontrol("show", "job", job))
    return found[1] if found else "UNKNOWN"


def requeue(job: str) -> None:
    _until_it_answers("requeue", job)


def hold(job: str, reason: str) -> None:
    """Put the job back into the queue, where it waits for a person."""
    comment(job, reason)
    _until_it_answers("requeuehold", job)


def comment(job: str, text: str) -> None:
    _scontrol("update", f"JobId={job}", f"Comment={' '.join(text.split())[:250]}")


def keep_nodes(job: str, nodes: list[str]) -> None:
    """Give the rest of the allocation back; a job shrinks while it runs and grows only at a requeue."""
    _scontrol("update", f"JobId={job}", f"NodeList={','.join(nodes)}")


def _until_it_answers(*words: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            _scontrol(*words)
        except LockstepError:
            if time.monotonic() > deadline:
                raise
            time.sleep(1)
        else:
            return


def _scontrol(*words: str) -> str:
    done = subprocess.run(["scontrol", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise LockstepError(f"scontrol {' '.join(words)}: {(done.stderr or done.stdout).strip()}")
    return done.stdout
