"""What the batch shell tells SLURM about its own job."""

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from configs.errors import LockstepError

PATIENCE = 1800  # seconds for a controller that is away: giving up would end the run
AWAY = re.compile(
    r"[Uu]nable to contact|Unexpected message|timed out|Connection refused|[Cc]ommunication|No route|recv|Zero Bytes"
)


def current_job_id() -> str:
    """This job as scontrol takes it: in an array plain SLURM_JOB_ID of one task may mean the whole array."""
    if array := os.environ.get("SLURM_ARRAY_JOB_ID"):
        return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return os.environ["SLURM_JOB_ID"]


def expand_hostnames(nodes: str) -> list[str]:
    """`node[1-3]` as single names."""
    return _scontrol("show", "hostnames", nodes).split() if nodes else []


def query_job_fields(job: str) -> dict[str, str]:
    """What SLURM knows of the job: JobState, ExcNodeList, StdOut, …"""
    return dict(re.findall(r"(\w+)=(\S*)", _until_it_answers("show", "job", job)))


def requeue_job(job: str, without: Iterable[str] = ()) -> None:
    """Start it again when there is room, on nodes other than `without`. Ends this shell, now or soon.

    Does nothing to a job that does not run: it was cancelled meanwhile, or its time is over, and a requeue would bring
    it back.
    Where SLURM ends the shell before it is told about `without`, or refuses it, the job starts again all the same.
    """
    fields = query_job_fields(job)
    if fields.get("JobState") != "RUNNING":
        return
    names = sorted(without)
    before = sorted(expand_hostnames(fields.get("ExcNodeList", "").replace("(null)", "")))
    _until_it_answers("requeue", job)
    if names == before:
        return
    # a job that runs does not take another list of nodes; this one is in the queue, and starts when its shell has ended
    change = f"{', '.join(names)} are to be left out" if names else f"{', '.join(before)} may be used again"
    _try_update(job, f"ExcNodeList={','.join(names)}", f"SLURM did not take that {change}")


def forbid_requeue(job: str) -> None:
    """The job is done: from now on it ends where its shell ends.

    SLURM 24.05 and later take a job for preempted that was requeued in the grace time of a preemption, also when its
    next start has ended well, and would start it once more. Such a job then ends as PREEMPTED, with exit code 0.
    """
    _try_update(job, "Requeue=0", "SLURM may start this job once more, though it is done")


def hold_job(job: str, reason: str) -> None:
    """Put the job back into the queue, where it waits for a person. Ends this shell. As `requeue_job`, does nothing
    to a job that does not run."""
    set_comment(job, reason)
    if query_job_fields(job).get("JobState") != "RUNNING":
        return
    _until_it_answers("requeuehold", job)


def set_comment(job: str, text: str) -> None:
    """Worth trying once: whoever has the run's folder finds the same there."""
    with suppress(LockstepError):
        _scontrol("update", f"JobId={job}", f"Comment={' '.join(text.split())[:250]}")


def keep_nodes(job: str, nodes: list[str]) -> None:
    """Give the rest of the allocation back; a job shrinks while it runs and grows only at a requeue."""
    with suppress(LockstepError):
        _scontrol("update", f"JobId={job}", f"NodeList={','.join(nodes)}")


def can_run_without(script: Path, nodes: Iterable[str]) -> bool:
    """Whether this cluster has enough other nodes for the job of `script`, free or not."""
    ours = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "SBATCH_"))}
    ours |= {"SLURM_CONF": os.environ["SLURM_CONF"]} if "SLURM_CONF" in os.environ else {}
    command = ["sbatch", "--test-only", f"--exclude={','.join(nodes)}", str(script)]
    return subprocess.run(command, capture_output=True, check=False, env=ours).returncode == 0


def _try_update(job: str, setting: str, otherwise: str) -> None:
    """For what the job can do without: where SLURM refuses it, the log says what follows from that."""
    try:
        _until_it_answers("update", f"JobId={job}", setting)
    except LockstepError as error:
        print(f"lockstep: {otherwise}: {error}", file=sys.stderr)


def _until_it_answers(*words: str) -> str:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return _scontrol(*words)
        except LockstepError as error:
            if not AWAY.search(str(error)) or time.monotonic() > deadline:
                raise
            time.sleep(1)


def _scontrol(*words: str) -> str:
    with tempfile.TemporaryDirectory() as folder:  # after a resize it leaves files where it stands
        done = subprocess.run(["scontrol", *words], capture_output=True, text=True, check=False, cwd=folder)
    if done.returncode:
        raise LockstepError(f"scontrol {' '.join(words)}: {(done.stderr or done.stdout).strip()}")
    return done.stdout
