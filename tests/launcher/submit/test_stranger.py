"""What ends with a local attempt, and what does not: a number that was a rank's may be a stranger's by now."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator

import psutil
import pytest

from launcher.local.attempt import LocalAttempt


@contextlib.contextmanager
def group_of(*command: str) -> Iterator[subprocess.Popen[bytes]]:
    """A command that leads a process group, as torch's launcher starts ranks."""
    process = subprocess.Popen(command, start_new_session=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture
def attempt() -> LocalAttempt:
    """One whose launcher has ended."""
    attempt = LocalAttempt.__new__(LocalAttempt)
    attempt.torchrun = subprocess.Popen(["true"])
    attempt.torchrun.wait()
    return attempt


def test_a_stranger_who_got_a_rank_s_number_survives(attempt: LocalAttempt) -> None:
    with group_of("cat") as stranger:
        rank = psutil.Process(stranger.pid)
        rank._ident = (stranger.pid, 1.0)  # the rank of that number started long ago, and is gone
        rank._create_time = 1.0
        attempt.ranks = {rank: 0}
        attempt._kill()
        answer, _ = stranger.communicate(b"alive", timeout=10)
        assert (answer, stranger.returncode) == (b"alive", 0)


def test_what_a_rank_has_started_ends_with_it(attempt: LocalAttempt) -> None:
    with group_of("sh", "-c", "sleep 3600 & sleep 3600") as leader:
        rank = psutil.Process(leader.pid)
        while len(rank.children()) < 2:
            assert leader.poll() is None
        children = rank.children()
        attempt.ranks = {rank: 0}
        attempt._kill()
        leader.wait(10)
        psutil.wait_procs(children, timeout=10)
        assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
