"""`lockstep why`: the first failure in time and what follows of it, without accounting and without SLURM."""

import time
from dataclasses import replace
from pathlib import Path

import pytest

from configs.errors import UserError
from launcher.monitor.why import explain_failure
from launcher.run_lock import hold_run, name_attempt
from store.run.end import End
from store.run.records import HeartbeatRecord
from store.run.run_dir import RunDir
from tests.launcher.folders import STEPS, FakeSlurm, add_attempt, add_failure, make_run
from tests.shell import lockstep

NOW = time.time()
FINISHED = End("finished", STEPS, "step-00000100-a0001")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    """Run `mine`, submitted as job 7, of which SLURM knows nothing any more."""
    monkeypatch.setenv("PATH", FakeSlurm(tmp_path / "bin").path)
    return make_run(tmp_path / "runs", "mine", job="7")


def test_the_first_failure_in_time_and_those_that_follow(run: RunDir) -> None:
    attempt = add_attempt(run, on=("node1", "node2"), step=40, ranks=8, ago=99)
    add_failure(attempt, 5, "node2", "CUDA out of memory. Tried to allocate 2 GiB", NOW)
    for rank in (0, 1, 2, 7):
        add_failure(attempt, rank, "node1", "Connection closed by peer", NOW - 1)
    lines = explain_failure(run).splitlines()
    assert lines[0].startswith("attempt 1 of mine: rank 5 on node2 ran out of memory in step 41: RuntimeError: CUDA")
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(NOW))
    assert lines[1] == f"first    {when}, rank 5 on node2, step 41: out of memory"
    assert lines[2] == "others   ranks 0-2, 7 failed because of it"
    assert lines[3] == f"log      {attempt.log_path(5)}"
    assert lines[4] == "then     restarted automatically: try 1 of 3 without a new checkpoint"
    assert lines[5].startswith("now      failed, attempt 1, 40/100 steps")


def test_after_the_last_try_it_is_held(run: RunDir) -> None:
    for _ in range(3):
        add_failure(add_attempt(run, on=("node1",), ago=99), 0, "node1", "no such layer", NOW)
    said = explain_failure(run)
    assert "attempt 3 of mine: rank 0 on node1 failed in step 1: RuntimeError: no such layer" in said
    assert "then     held: 3 attempts in a row ended without a new checkpoint; the last: " in said
    assert said.splitlines()[-2].endswith("; fix the cause, then run lockstep submit again")


def test_an_attempt_that_nobody_tells_anything_of(run: RunDir) -> None:
    add_attempt(run, on=("node1",), ago=99)
    lines = explain_failure(run).splitlines()
    assert lines[0] == "attempt 1 of mine: lost, cause unknown"
    assert not any(line.startswith(("first", "others")) for line in lines)


def test_a_node_that_fell_silent(run: RunDir) -> None:
    attempt = add_attempt(run, on=("node1", "node2"), step=40, ranks=2, ago=99)
    beat = HeartbeatRecord.read(attempt.heartbeat_path(0))
    replace(beat, time=beat.time - 20).write(attempt.heartbeat_path(0))
    assert "attempt 1 of mine: node node1 was lost" in explain_failure(run)


def test_an_earlier_attempt_failed_and_the_run_is_finished(run: RunDir) -> None:
    add_failure(add_attempt(run, on=("node1",), ago=99), 1, "node1", "no such layer", NOW)
    add_attempt(run, on=("node1",), end=FINISHED, step=STEPS)
    said = explain_failure(run)
    assert "attempt 1 of mine: rank 1 on node1 failed" in said
    assert "now      finished, attempt 2, 100/100 steps (reported by records)" in said


def test_nothing_failed(tmp_path: Path) -> None:
    local = make_run(tmp_path, "mine")
    assert explain_failure(local) == "nothing failed: mine is not begun (reported by records)"
    with hold_run(local) as lock:
        name_attempt(lock, add_attempt(local, step=40).number)
        assert explain_failure(local) == "nothing failed: mine is running, attempt 1, 40/100 steps (reported by lock)"


def test_a_local_run_names_the_way_on(tmp_path: Path) -> None:
    local = make_run(tmp_path, "mine")
    with hold_run(local):
        pass
    attempt = add_attempt(local)
    add_failure(attempt, 0, "here", "/x.png: does not decode", NOW, error="UserError", exit_code=2)
    said = explain_failure(local)
    assert "/x.png: does not decode" in said
    assert (
        "then     a local run is not restarted automatically; fix the cause, then lockstep submit starts from" in said
    )


def test_a_job_that_ended_before_any_attempt_shows_its_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeSlurm(tmp_path / "bin", sacct=["7|FAILED|None|node1|Unknown|Unknown"])
    monkeypatch.setenv("PATH", fake.path)
    run = make_run(tmp_path / "runs", "mine", job="7")
    run.slurm_path.mkdir()
    output = run.slurm_path / "7_0_log.out"
    output.write_text("module: command not found")
    assert explain_failure(run).splitlines() == [
        "mine: its job ended before an attempt began (FAILED)",
        f"log      {output}",
    ]


def test_no_such_run(tmp_path: Path) -> None:
    done = lockstep("why", tmp_path / "nowhere")
    assert (done.returncode, done.stderr.count("\n")) == (UserError.exit_code, 1)
