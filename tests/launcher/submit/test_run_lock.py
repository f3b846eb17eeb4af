"""Who has a run is named as it is: the command that trains it, or the ranks that outlived that command."""

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.run_lock import RunHeldError, hold_run, name_attempt
from store.run.run_dir import RunDir
from tests.launcher.folders import add_attempt
from tests.launcher.folders import make_run as make_folder
from tests.launcher.runs import CONFIG, LOCAL, STEPS, end_of, make_run, metrics_of
from tests.shell import lockstep, processes_of, rank_of, started, until

HOST = socket.gethostname()


@pytest.fixture
def endless(model: Path) -> Iterator[tuple[Path, RunDir]]:
    """A run that only ends when it is told to, and of which nothing is left afterwards."""
    file, run = make_run(model, "orphaned", CONFIG.replace(f"steps: {STEPS}", "steps: 1_000_000"))
    try:
        yield file, run
    finally:
        for process in processes_of(run.path):
            process.kill()


def test_ranks_that_outlive_their_launcher_are_named_and_can_be_stopped(endless: tuple[Path, RunDir]) -> None:
    file, run = endless
    with started(file.with_suffix(".out"), "submit", file, *LOCAL, 2) as process:
        until(lambda: metrics_of(run.attempt(1).metrics_path))
        process.kill()
        process.wait()
    ranks = [rank_of(run.path, rank) for rank in (0, 1)]
    assert None not in ranks, "they go on: torchrun has the run's lock, too"

    second = lockstep("submit", file, *LOCAL, 2)
    assert (second.returncode, second.stdout) == (2, "")
    living = ", ".join(f"rank {number} (process {rank.pid})" for number, rank in enumerate(ranks) if rank)
    assert f"{run.path}: attempt 1 is still running on {HOST}: {living}" in second.stderr
    assert f"process {process.pid}, which started it, has ended" in second.stderr
    assert f"lockstep logs {run.path} -f" in second.stderr

    cure = re.search(r"lockstep (stop \S+)", second.stderr)
    assert cure, second.stderr
    assert lockstep(*cure[1].split()).returncode == 0
    until(lambda: not processes_of(run.path))
    assert end_of(run, 1)["reason"] == "notice"


def test_a_living_holder_is_named_with_its_host(tmp_path: Path) -> None:
    run = make_folder(tmp_path, "mine")
    with hold_run(run) as lock:
        with (
            pytest.raises(RunHeldError, match=rf"is in use by process {os.getpid()} on {HOST} since .* ends$"),
            hold_run(run),
        ):
            pass
        name_attempt(lock, 1)
        with pytest.raises(RunHeldError, match=rf"ends, or stop it: lockstep stop {run.path}$"), hold_run(run):
            pass


# Takes the lock, lets a process that outlives it keep it, and ends without a word.
DIES = """
import os, subprocess, sys
from pathlib import Path
from launcher.run_lock import hold_run
from store.run.run_dir import RunDir
with hold_run(RunDir(Path(sys.argv[1]))) as lock:
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    heir = subprocess.Popen(["sleep", "600"], pass_fds=(lock,), **quiet)
    print(os.getpid(), heir.pid, flush=True)
    os._exit(1)
"""


@pytest.fixture
def orphaned(tmp_path: Path) -> Iterator[tuple[RunDir, int]]:
    """A run whose lock is kept by a process that its launcher started, and the number of that launcher, now gone."""
    run = make_folder(tmp_path, "mine")
    done = subprocess.run([sys.executable, "-c", DIES, str(run.path)], capture_output=True, text=True, check=False)
    launcher, heir = map(int, done.stdout.split())
    try:
        yield run, launcher
    finally:
        os.kill(heir, 9)


def test_ranks_without_a_sign_of_life_are_starting(orphaned: tuple[RunDir, int]) -> None:
    run, launcher = orphaned
    attempt = add_attempt(run)
    for rank in (0, 1):
        attempt.heartbeat_path(rank).unlink()
    with pytest.raises(RunHeldError) as refused, hold_run(run):
        pass
    assert f"{run.path}: attempt 1 is still running on {HOST}: its ranks are starting, or ending" in str(refused.value)
    assert f"process {launcher}, which started it, has ended" in str(refused.value)


def test_a_process_that_got_the_number_of_a_dead_rank_is_not_named(orphaned: tuple[RunDir, int]) -> None:
    """Heartbeats from before this process began are of another one with its number."""
    add_attempt(orphaned[0], ago=10 * 24 * 3600)
    with pytest.raises(RunHeldError) as refused, hold_run(orphaned[0]):
        pass
    assert str(os.getpid()) not in str(refused.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"host": "other"}'])
def test_a_lock_that_does_not_tell_its_holder(tmp_path: Path, text: str) -> None:
    run = make_folder(tmp_path, "mine")
    with hold_run(run):
        run.lock_path.write_text(text)
        with pytest.raises(RunHeldError, match="is in use by another process"), hold_run(run):
            pass
