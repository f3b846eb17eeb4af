"""`lockstep logs`: a rank's log, and on into the next attempt until the run's end."""

import signal
from pathlib import Path

import pytest

from launcher.run_lock import hold_run
from store.run.end import End
from store.run.run_dir import RunDir
from tests.launcher.folders import STEPS, add_attempt, make_run
from tests.shell import lockstep, started, until

FINISHED = End("finished", STEPS, "step-00000100-a0001")


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return make_run(tmp_path, "mine")


def test_the_newest_attempts_log_or_the_one_asked_for(run: RunDir) -> None:
    add_attempt(run)
    add_attempt(run, end=FINISHED)
    assert lockstep("logs", run.path).stdout == "rank 0 of attempt 2\n"
    assert lockstep("logs", run.path, "--attempt", 1, "--rank", 1).stdout == "rank 1 of attempt 1\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--attempt", "7"], "has no attempt 7; it has 1 to 1"),
        (["--rank", "5"], "attempt 1 has no rank 5; its ranks are 0 to 1"),
    ],
)
def test_what_is_not_there(run: RunDir, words: list[str], said: str) -> None:
    add_attempt(run)
    done = lockstep("logs", run.path, *words)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert said in done.stderr


def test_no_such_run_and_none_begun(run: RunDir, tmp_path: Path) -> None:
    assert lockstep("logs", tmp_path / "nowhere").returncode == 2
    done = lockstep("logs", run.path)
    assert (done.returncode, "has begun no attempt yet" in done.stderr) == (2, True)


def test_followed_over_attempts_to_the_end(run: RunDir, tmp_path: Path) -> None:
    said = tmp_path / "said"
    with hold_run(run), started(said, "logs", run.path, "-f") as process:  # before anything has begun
        until(lambda: "submitting" in said.read_text(), 20)
        first = add_attempt(run, step=3)
        until(lambda: "rank 0 of attempt 1" in said.read_text(), 20)
        with open(first.log_path(0), "a") as log:
            log.write("more\n")
        until(lambda: "more" in said.read_text(), 20)
        add_attempt(run, end=FINISHED, step=STEPS)
        assert process.wait(20) == 0
    lines = [line for line in said.read_text().splitlines() if "submitting" not in line]
    assert lines == [
        "=== attempt 1",
        "rank 0 of attempt 1",
        "more",
        "=== attempt 2",
        "rank 0 of attempt 2",
        "=== mine is finished, 100/100 steps",
    ]


def test_followed_from_the_middle(tmp_path: Path) -> None:
    """It says which attempt it follows, and where, also where that has begun long ago."""
    run, said = make_run(tmp_path, "mine", job="7"), tmp_path / "said"
    add_attempt(run, on=("node1", "node2"), end=End("notice", 40, "step-00000040-a0001", "SIGTERM"), step=40)
    second = add_attempt(run, on=("node2", "node3"), step=50)
    with started(said, "logs", run.path, "-f", "--rank", 1) as process:
        until(lambda: "rank 1 of attempt 2" in said.read_text(), 20)
        FINISHED.write(second.end_path)
        assert process.wait(20) == 0
    assert said.read_text().splitlines() == [
        "=== attempt 2 on node2, node3: first attempt",
        "rank 1 of attempt 2",
        "=== mine is finished, 100/100 steps",
    ]


def test_ctrl_c_leaves_quietly(run: RunDir, tmp_path: Path) -> None:
    said = tmp_path / "said"
    with hold_run(run):
        add_attempt(run, step=3)
        with started(said, "logs", run.path, "-f") as process:
            until(lambda: "rank 0 of attempt 1" in said.read_text(), 20)
            process.send_signal(signal.SIGINT)
            assert process.wait(20) == 0
    assert said.read_text().splitlines()[:2] == ["=== attempt 1", "rank 0 of attempt 1"]
    assert "Traceback" not in said.read_text()
