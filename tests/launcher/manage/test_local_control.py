"""stop and cancel reach a run on this machine as they reach a job: what is under way here holds the run's lock."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from configs.errors import LockstepError
from launcher.backend import find_backend_job
from launcher.local import backend
from launcher.run_lock import hold_run
from store.run.end import End
from store.run.run_dir import RunDir
from tests.launcher.desk import Desk
from tests.launcher.folders import add_attempt
from tests.shell import ended

LAUNCHER = """
import sys, time
from pathlib import Path
from launcher.run_lock import hold_run
from launcher.local.attempt import SignalCounter
from store.run.run_dir import RunDir
with SignalCounter() as notices, hold_run(RunDir(Path(sys.argv[1]))):
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
def launched(run: RunDir) -> Iterator[subprocess.Popen[str]]:
    """A launcher that holds the run's lock until it was told twice, as ours does for ranks that do not answer."""
    process = subprocess.Popen([sys.executable, "-c", LAUNCHER, run.path], stdout=subprocess.PIPE, text=True)
    with ended(process):  # type: ignore[arg-type]
        assert process.stdout is not None
        assert process.stdout.readline() == "holds\n"
        yield process


def test_stop_reaches_a_run_that_is_still_loading(desk: Desk, run: RunDir) -> None:
    add_attempt(run, ago=99)
    with hold_run(run):
        code, output = desk.lockstep("stop", run.path)
    assert (code, run.stop_request_path.is_file()) == (0, True), output
    run.stop_request_path.unlink()
    code, output = desk.lockstep("stop", run.path)
    assert (code, "is neither training nor in the queue" in output) == (2, True), output


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
