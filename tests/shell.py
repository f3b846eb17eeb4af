"""The `lockstep` command as a person meets it: a process of its own, with a pipe or a terminal to look at."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import psutil
import pytest

LOCKSTEP = str(Path(sys.executable).with_name("lockstep"))
# One thread per rank: two that spin for each other on cores that others use, too, make a step take seconds.
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}
# What takes from root the right to read and write whatever it likes, which others never have.
_RIGHTS = "-dac_override,-dac_read_search"
ORDINARY = [] if os.geteuid() else ["/usr/bin/setpriv", f"--bounding-set={_RIGHTS}", f"--inh-caps={_RIGHTS}"]
TEAM = os.getegid() if os.geteuid() else 65534  # a group, and as root the number of another user in it
T = TypeVar("T")
two_users = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two users")


def as_colleague(*words: object) -> subprocess.CompletedProcess[str]:
    """Run a command as another user of the team."""
    command = [str(word) for word in words]
    return subprocess.run(
        command, user=TEAM, group=TEAM, extra_groups=[], umask=0o002, capture_output=True, text=True, check=False
    )


def lockstep(
    *words: object, cwd: Path | None = None, timeout: float = 240, ordinary: bool = False, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a command line to its end; as an `ordinary` user, whom file modes bind."""
    command = [*(ORDINARY if ordinary else []), LOCKSTEP, *map(str, words)]
    return subprocess.run(
        command, cwd=cwd, env=ENVIRONMENT | environment, capture_output=True, text=True, timeout=timeout, check=False
    )


@contextlib.contextmanager
def started(output: Path, *words: object) -> Iterator[subprocess.Popen[bytes]]:
    """A command that runs while in here; what it prints goes to the file `output`."""
    with open(output, "wb") as file:
        process = subprocess.Popen(
            # a shell's background job ignores SIGINT, and so would its children
            ["env", "--default-signal=INT", LOCKSTEP, *map(str, words)],
            stdout=file,
            stderr=file,
            env=ENVIRONMENT,
            start_new_session=True,
        )
    with ended(process):
        yield process


@contextlib.contextmanager
def ended(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Whatever fails in here, `process` and its children do not outlive it."""
    try:
        yield
    finally:
        if process.poll() is None:
            for child in (*psutil.Process(process.pid).children(recursive=True), process):
                child.kill()
            process.wait()


def until(condition: Callable[[], T], seconds: float = 120) -> T:
    """What `condition` answers once it is true."""
    deadline = time.monotonic() + seconds
    while not (answer := condition()):
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.02)
    return answer


def processes_of(run: Path) -> list[psutil.Process]:
    """Every live process that works on the run in `run`, but for the command that watches it."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess):
            if str(run) in process.cmdline() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def rank_of(run: Path, rank: int) -> psutil.Process | None:
    """The process of `rank`, once torch's launcher has started it."""
    for process in processes_of(run):
        with contextlib.suppress(psutil.NoSuchProcess):
            parent = process.parent()
            ours = parent is not None and "torch.distributed.run" in parent.cmdline()
            if ours and process.environ().get("RANK") == str(rank):
                return process
    return None
