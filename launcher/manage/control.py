"""What people ask of a run through its folder, so that no right to its job is needed: save, stop, cancel."""

import getpass
import socket
import time
from collections.abc import Iterator

from configs.errors import LockstepError, UserError
from configs.reading.load import load_config
from launcher.backend import find_backend_job
from store.files import write_atomic
from store.run.liveness import find_training_attempt
from store.run.records import EXPORTING, read_heartbeat
from store.run.run_dir import Attempt, RunDir

POLL = 0.2
_EXPORTS = "has made and saved its last step, and is exporting; it ends by itself"


def request_save(run: RunDir) -> str:
    """Ask for a checkpoint of the step under way, and answer what was asked. Raises UserError where nobody would hear
    it."""
    attempt = find_training_attempt(run)
    if attempt is None:
        raise UserError(f"{run.path}: is not training now; its checkpoints: lockstep checkpoints {run.path}")
    if _is_exporting(attempt):
        raise UserError(f"{run.path}: {_EXPORTS}")
    write_atomic(run.save_request_path, _who())
    return "asked for a checkpoint after the step under way"


def request_stop(run: RunDir) -> str:
    """The request stays until the next submit, so it also reaches a run that is still loading or in the queue."""
    unsure = ""
    attempt = find_training_attempt(run)
    if attempt is not None:
        if _is_exporting(attempt):
            raise UserError(f"{run.path}: {_EXPORTS}")
    else:
        try:
            lives = find_backend_job(run) is not None
        except LockstepError as error:  # the request reaches it all the same
            lives, unsure = True, f", if it lives ({error})"
        if not lives:
            raise UserError(f"{run.path}: is neither training nor in the queue")
    write_atomic(run.stop_request_path, _who())
    return f"asked to save after the step under way, and to end{unsure}; lockstep submit resumes from there"


def _is_exporting(attempt: Attempt) -> bool:
    """Whether all steps are made, so that nobody listens to requests any more."""
    beat = read_heartbeat(attempt.heartbeat_path(0))
    return beat is not None and beat.doing == EXPORTING


def cancel_run(run: RunDir) -> Iterator[str]:
    """Stop it with a checkpoint where that works in the time of a notice; then its job is cancelled.

    Ranks that live are asked first, so that they end also where nobody can tell which job is theirs.
    """
    attempt = find_training_attempt(run)
    if attempt is not None and not _is_exporting(attempt):
        yield request_stop(run)
    active = find_backend_job(run)
    if active is None:
        if attempt is None:
            raise UserError(f"{run.path}: is neither training nor in the queue")
        return
    backend, job = active
    if job.state == "RUNNING" and attempt is not None:
        deadline = time.monotonic() + load_config(run.config_path).checkpoint.notice_seconds
        while find_training_attempt(run) is not None and time.monotonic() < deadline:
            time.sleep(POLL)
    backend.cancel_job(job.id)
    saved = "saved" if attempt is not None and attempt.end_path.is_file() else "earlier checkpoints are kept"
    yield f"{job.name} is cancelled, {saved}; lockstep submit resumes from there"


def _who() -> str:
    return f"{getpass.getuser()} on {socket.gethostname()}"
