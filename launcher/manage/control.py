"""What people ask of a run through its folder, so that no right to its job is needed: save, stop, cancel."""

import getpass
import socket
import time
from collections.abc import Iterator

from configs.errors import LockstepError, UserError
from configs.reading.load import load_config
from slurm.job.record import find_active_job, find_training_attempt
from slurm.query import queue
from store.run.run_dir import RunDir, write_atomic

POLL = 0.2
CANCELLING = 120.0  # seconds that a job may take to end after scancel


def request_save(run: RunDir) -> str:
    if find_training_attempt(run) is None:
        raise UserError(f"{run.path}: is not training now; its checkpoints: lockstep checkpoints {run.path}")
    write_atomic(run.save_request, _who())
    return "asked for a checkpoint after the step under way"


def clear_requests(run: RunDir) -> None:
    """For who submits the run: what was asked of it before is not meant for what comes now."""
    for request in (run.stop_request, run.save_request):
        request.unlink(missing_ok=True)


def request_stop(run: RunDir) -> str:
    """The request stays until the next submit, so it also reaches a run that is still loading or in the queue."""
    unsure = ""
    if find_training_attempt(run) is None:
        try:
            lives = find_active_job(run) is not None
        except LockstepError as error:  # the request reaches it all the same
            lives, unsure = True, f", if it lives ({error})"
        if not lives:
            raise UserError(f"{run.path}: is neither training nor in the queue")
    write_atomic(run.stop_request, _who())
    return f"asked to save after the step under way, and to end{unsure}; lockstep submit goes on from there"


def cancel_run(run: RunDir) -> Iterator[str]:
    """Stop it with a checkpoint where that works in the time of a notice; then the job is cancelled.

    Ranks that live are asked first, so that they end also where nobody can tell which job is theirs.
    """
    attempt = find_training_attempt(run)
    if attempt is not None:
        yield request_stop(run)
    job = find_active_job(run)
    if job is None and attempt is None:
        raise UserError(f"{run.path}: is neither training nor in the queue")
    if job is None:
        return
    if job.state == "RUNNING" and attempt is not None:
        deadline = time.monotonic() + load_config(run.config).checkpoint.notice_seconds
        while find_training_attempt(run) is not None and time.monotonic() < deadline:
            time.sleep(POLL)
    queue.cancel_job(job.id)
    _wait_until_gone(job.id)
    what = "saved" if attempt is not None and attempt.end.is_file() else "what it had saved stands"
    yield f"job {job.id} is cancelled, {what}; lockstep submit goes on from there"


def _wait_until_gone(job: str) -> None:
    deadline = time.monotonic() + CANCELLING
    while (now := queue.query_jobs([job]).get(job)) is not None and not now.over:
        if time.monotonic() > deadline:
            late = f"within {CANCELLING:.0f} s of scancel"
            what = f"job {job} has not ended {late}: it is {now.state.lower()}"
            if not now.alive:
                what = f"SLURM has not told {late} whether job {job} has ended"
            raise LockstepError(f"{what}; see scontrol show job {job}")
        time.sleep(1)


def _who() -> str:
    return f"{getpass.getuser()} on {socket.gethostname()}"
