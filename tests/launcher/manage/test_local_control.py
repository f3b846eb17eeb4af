"""stop and cancel reach a run on this machine as they reach a job: what is under way here holds the run's lock."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from configs.errors import LockstepError
from launcher.backend import find_backend_job
from launcher.local import backend
from launcher.run_lock import hold_run, name_attempt
from store.run.end import End
from store.run.records import EXPORTING, read_heartbeats
from store.run.run_dir import RunDir
from tests.launcher.desk import Desk
from tests.launcher.folders import add_attempt
from tests.shell import ended

LAUNCHER = """
import sys, time
from pathlib import Path
from launcher.run_lock import hold_run, name_attempt
from launcher.local.attempt import SignalCounter
from store.run.run_dir import RunDir
with SignalCounter() as notices, hold_run(RunDir(Path(sys.argv[1]))) as lock:
    if len(sys.argv) > 2:
        name_attempt(lock, int(sys.argv[2]))
    print("holds", flush=True)
    while len(notices.given) < 2:
        time.sleep(0.02)
"""


@pytest.fixture
def run(desk: Desk) -> RunDir:
    """Never given to SLURM, and with a notice that is soon over."""
    ready = desk.ready('checkpoint={"notice_seconds": 1}')
    ready.write()
    return ready.run


@contextmanager
def launched(run: RunDir, attempt: int | None = 1) -> Iterator[subprocess.Popen[str]]:
    """A launcher that holds the run's lock until it was told twice, as ours does for ranks that do not answer.
    Without an `attempt` it does something else with the run."""
    words = [str(attempt)] if attempt is not None else []
    process = subprocess.Popen([sys.executable, "-c", LAUNCHER, run.path, *words], stdout=subprocess.PIPE, text=True)
    with ended(process):  # type: ignore[arg-type]
        assert process.stdout is not None
        assert process.stdout.readline() == "holds\n"
        yield process


def test_stop_reaches_a_run_that_is_still_loading(desk: Desk, run: RunDir) -> None:
    add_attempt(run, ago=99)
    with hold_run(run) as lock:
        name_attempt(lock, 1)
        code, output = desk.lockstep("stop", run.path)
    assert (code, run.stop_request_path.is_file()) == (0, True), output
    run.stop_request_path.unlink()
    code, output = desk.lockstep("stop", run.path)
    assert (code, "is neither training nor in the queue" in output) == (2, True), output


def test_cancel_leaves_alone_who_only_has_the_lock(desk: Desk, run: RunDir) -> None:
    """Such as a submit to SLURM or a prune, after a local attempt that left no end behind."""
    add_attempt(run, step=3, ago=99)
    with launched(run, attempt=None) as holder:
        code, output = desk.lockstep("cancel", run.path)
        assert holder.poll() is None
    assert (code, "is neither training nor in the queue" in output) == (2, True), output


@pytest.mark.parametrize("command", ["save", "stop"])
def test_nobody_hears_a_request_once_the_last_step_is_saved(desk: Desk, run: RunDir, command: str) -> None:
    attempt = add_attempt(run, step=100)
    beat = read_heartbeats(attempt)[0]
    replace(beat, doing=EXPORTING).write(attempt.heartbeat_path(0))
    code, output = desk.lockstep(command, run.path)
    assert (code, "is exporting; it ends by itself" in output) == (2, True), output
    assert not run.control_path.exists()


def test_cancel_ends_a_run_whose_ranks_do_not_answer(desk: Desk, run: RunDir) -> None:
    add_attempt(run, step=3)
    with launched(run) as launcher:
        code, output = desk.lockstep("cancel", run.path)
        assert launcher.wait(10) == 0
    assert code == 0, output
    assert "asked to save after the step under way" in output
    assert "the local run is cancelled, earlier checkpoints are kept; lockstep submit resumes from there" in output


def test_cancel_waits_for_a_run_that_has_saved(desk: Desk, run: RunDir) -> None:
    """Its launcher is not told what it would take for impatience."""
    attempt = add_attempt(run, ago=99)
    with launched(run) as launcher:
        [job] = backend.LocalBackend().query_jobs([str(run.path)]).values()
        assert (job.alive, job.source) == (True, "lock")
        End("notice", 3, None, "stop asked for by Ada").write(attempt.end_path)
        backend.LocalBackend().cancel_job(job.id)
        assert launcher.poll() is None


def test_a_run_on_another_machine_is_cancelled_there(desk: Desk, run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """No lock tells of it here, and its ranks give signs of life."""
    add_attempt(run, step=3)
    monkeypatch.setattr(backend, "CANCELLING", 0.0)
    active = find_backend_job(run)
    assert active is not None
    owner, job = active
    assert (owner.name, job.source) == ("local", "heartbeat")
    with pytest.raises(LockstepError, match=r"still runs on .*; run lockstep cancel there"):
        owner.cancel_job(job.id)


def test_a_lock_that_nobody_holds_is_no_job(run: RunDir) -> None:
    add_attempt(run, step=3)
    with hold_run(run):
        pass
    assert find_backend_job(run) is None
