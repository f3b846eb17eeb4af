"""The requests in the run's `control` folder, where others may put whatever they like."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from store.files import write_atomic
from store.run.run_dir import RunDir
from tests.shell import ORDINARY, as_colleague, two_users

_POLL = """
import json, sys
from pathlib import Path
from store.run.run_dir import RunDir
from train.context import RankContext
from train.resilience.control import ControlPoller
from train.progress import Progress
from train.stop_signal import StopSignal

run, stop = RunDir(Path(sys.argv[1])), StopSignal()
context = RankContext(run, run.attempt(1), None, None, None, Progress(), stop)
try:
    ControlPoller(context).poll_requests()
finally:
    print(json.dumps([stop.reason, context.save_requested.is_set()]))
"""


def poll(run: RunDir, *before: str) -> subprocess.CompletedProcess[str]:
    command = [*before, sys.executable, "-c", _POLL, str(run.path)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def polled(run: RunDir) -> list[object]:
    """Why rank 0 is to stop, and whether it is to save."""
    done = poll(run)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def run(shared: Path) -> RunDir:
    run = RunDir(shared / "run")
    run.open_attempt()
    run.control_path.mkdir()
    return run


def test_a_request_says_who_asked(run: RunDir) -> None:
    write_atomic(run.stop_request_path, "Ada on login1")
    write_atomic(run.save_request_path, "Ada on login1")
    assert polled(run) == ["stop requested by Ada on login1", True]
    assert not run.save_request_path.exists()
    assert run.stop_request_path.exists()
    assert polled(run) == ["stop requested by Ada on login1", False]


def test_a_folder_that_cannot_be_searched_asks_for_nothing(run: RunDir) -> None:
    """As where a ticket for the file system has run out: nobody knows whether there is a request."""
    run.control_path.chmod(0)
    done = poll(run, *ORDINARY)
    assert (done.returncode, json.loads(done.stdout)) == (1, [None, False])
    assert "PermissionError" in done.stderr, "the monitor says so, and training goes on"


@two_users
def test_a_colleague_may_ask(run: RunDir) -> None:
    """With a bare file, too, and with one that only they may read."""
    assert as_colleague("touch", run.stop_request_path).returncode == 0
    assert polled(run) == ["stop requested by somebody", False]


@two_users
@pytest.mark.parametrize("how", ["-s", "-P"])
def test_a_link_to_a_file_of_the_owners_is_no_request(run: RunDir, shared: Path, how: str) -> None:
    """Its text would be in end.json and in the log, which all may read."""
    private = shared / "run" / "private"
    private.write_text("-----BEGIN OPENSSH PRIVATE KEY-----")
    private.chmod(0o666 if how == "-P" else 0o600)  # the kernel lets nobody link to a file that they cannot write
    assert as_colleague("ln", how, private, run.stop_request_path).returncode == 0
    private.chmod(0o600)
    assert polled(run) == [None, False]


@pytest.mark.parametrize("kind", ["mkfifo", "mkdir"])
def test_only_a_file_is_a_request(run: RunDir, kind: str) -> None:
    for request in (run.stop_request_path, run.save_request_path):
        subprocess.run([kind, request], check=True)
    assert polled(run) == [None, False]


def test_who_asked_is_a_short_line_that_a_terminal_may_show(run: RunDir) -> None:
    write_atomic(run.stop_request_path, "\x1b[31mAda\x07 on login1 " + "x" * 10_000 + "\nreason: finished\n")
    reason, _ = polled(run)
    assert str(reason).startswith("stop requested by [31mAda on login1 xxx")
    assert len(str(reason)) < 120
    assert str(reason).isprintable()
