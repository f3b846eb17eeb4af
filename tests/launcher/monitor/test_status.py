"""`lockstep status`: what a person reads of a run in every state, who told it, and how few questions that takes."""

import json
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from launcher.cli.main import cli
from launcher.monitor import status, status_text
from launcher.monitor.records import read_last_line
from launcher.monitor.why import explain_failure
from launcher.run_lock import hold_run, name_attempt
from store.run.end import End
from store.run.run_dir import RunDir
from tests.launcher.folders import STEPS, FakeSlurm, add_attempt, add_failure, make_run, many, moment
from tests.shell import lockstep

FINISHED = End("finished", STEPS, "step-00000100-a0001")
ON_SIGNAL = End("notice", 40, "step-00000040-a0001", "SIGTERM")
ASKED = End("notice", 40, "step-00000040-a0001", "stop asked for by Ada")
HELD = "7|PENDING|job requeued in held state||N/A|N/A"


def running() -> str:
    """squeue's line for job 7 with half an hour to go."""
    return f"7|RUNNING|None|node[1-2]|{moment(-60)}|{moment(1800)}"


def slurm_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **answers: list[str]) -> FakeSlurm:
    fake = FakeSlurm(tmp_path / "bin", **answers)
    monkeypatch.setenv("PATH", fake.path)
    return fake


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """Run `mine`, submitted as job 7."""
    return make_run(tmp_path, "mine", job="7")


def test_a_thousand_finished_runs_and_fifty_live_ones_take_one_question(tmp_path: Path) -> None:
    lines = many(tmp_path / "runs", 1000, 50)
    fake = FakeSlurm(tmp_path / "bin", squeue=lines)
    done = lockstep("status", cwd=tmp_path, PATH=fake.path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("\n") == 1 + 1050 + 1
    assert done.stdout.endswith("1,050 runs: 1,000 finished, 50 running\n")
    assert fake.calls() == {"squeue": 1, "sacct": 0, "scontrol": 0}


def test_finished_runs_ask_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    many(tmp_path / "runs", 3, 0)
    fake = slurm_says(tmp_path, monkeypatch)
    assert {row.state for row in status.read_statuses([RunDir(path) for path in (tmp_path / "runs").iterdir()])} == {
        "finished"
    }
    assert fake.calls() == {"squeue": 0, "sacct": 0, "scontrol": 0}


@pytest.mark.parametrize(
    ("known_to", "line"),
    [
        ("sacct", "{}|CANCELLED by 1000|None|None assigned|{}|{}"),
        ("scontrol", "JobId={} JobName=a b JobState=CANCELLED Reason=None StartTime={} EndTime={} NodeList=node1"),
    ],
)
def test_jobs_that_left_the_queue_are_asked_for_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known_to: str, line: str
) -> None:
    runs = [make_run(tmp_path / "runs", f"run{number}", job=str(number)) for number in range(20)]
    lines = [line.format(number, moment(-9), moment(-1)) for number in range(20)]
    fake = slurm_says(tmp_path, monkeypatch, **{known_to: lines})
    found = status.read_statuses(runs)
    assert {(row.state, row.source) for row in found} == {("cancelled", known_to)}
    assert fake.calls() == {"squeue": 1, "sacct": 1, "scontrol": 0 if known_to == "sacct" else 1}


def test_a_running_run_says_how_far_it_is(run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slurm_says(tmp_path, monkeypatch, squeue=[running()])
    add_attempt(run, on=("node1", "node2"), step=40)
    row = status.read_status(run)
    assert (row.state, row.detail, row.source, row.job) == ("running", "on node[1-2]", "squeue", "7")
    assert (row.attempt, row.step, row.steps, row.loss) == (1, 40, STEPS, 1 / 40)
    assert row.seconds_to_end == 60 * 2.0
    assert row.seconds_to_wall == pytest.approx(1800, abs=10)


@pytest.mark.parametrize("end", [None, End("finished", STEPS, "step")])
def test_skipped_steps_are_told_while_it_runs_and_after(
    run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: End | None
) -> None:
    slurm_says(tmp_path, monkeypatch, squeue=[running()])
    add_attempt(run, on=("node1", "node2"), step=40, end=end)
    with open(run.metrics_path, "a") as file:
        line = {"step": 41, "loss/train": None, "grad_norm": None, "optimizer/skipped": 3.0, "time/step_s": 2.0}
        file.write(json.dumps(line) + "\n")
    row = status.read_status(run)
    assert (row.loss, row.skipped) == (None, 3)
    assert row.detail.endswith("3 steps skipped, loss or gradient not finite")
    assert json.loads(status_text.statuses_to_json([row]))[0]["skipped"] == 3
    assert "3 steps skipped, loss or gradient not finite" in status_text.render_statuses([row])
    assert "3 steps skipped, loss or gradient not finite" in explain_failure(run)


def test_a_requeued_job_that_has_not_begun_its_next_attempt(
    run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_attempt(run, on=("node1",), end=ON_SIGNAL, step=40)
    slurm_says(tmp_path, monkeypatch, squeue=[running()])
    row = status.read_status(run)
    assert (row.state, row.training, row.step) == ("running", False, 40)
    assert "about to begin" in row.detail


@pytest.mark.parametrize(
    ("line", "state", "detail"),
    [
        (f"7|PENDING|Resources||{moment(3600)}|N/A", "pending", "Resources, expected to start at 20"),
        ("7|PENDING|BeginTime||N/A|N/A", "pending", "BeginTime"),
        (HELD, "held", "3 attempts in a row ended without a new checkpoint; the last: rank 1 on node1"),
    ],
)
def test_what_a_run_waits_for(
    run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, state: str, detail: str
) -> None:
    for _ in range(3):
        add_failure(add_attempt(run, on=("node1",)), 1, "node1", "no such layer", time.time())
    slurm_says(tmp_path, monkeypatch, squeue=[line])
    row = status.read_status(run)
    assert row.state == state
    assert detail in row.detail


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        ("REQUEUE_HOLD", "launch failure limit exceeded requeued held"),
        ("REQUEUE_HOLD", "launch_failure_limit_exceeded_requeued_held"),
        ("RESV_DEL_HOLD", "ReservationDeleted"),
        ("PENDING", "job requeued in held state"),
        ("PENDING", "JobHeldUser"),
    ],
)
def test_what_others_hold_needs_somebody_to_release_it(
    run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str, reason: str
) -> None:
    add_attempt(run, on=("node1",), end=ON_SIGNAL, step=40)
    slurm_says(tmp_path, monkeypatch, squeue=[f"7|{state}|{reason}||N/A|N/A"])
    row = status.read_status(run)
    assert (row.state, row.alive, row.source) == ("held", False, "squeue")
    assert reason in row.detail
    assert "scontrol release 7" in row.detail
    assert row.detail in explain_failure(run)


@pytest.mark.parametrize(("state", "reason"), [("EXPEDITING", "None"), ("REQUEUE_HOLD", "BeginTime")])
def test_what_slurm_is_about_to_start_waits(
    run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str, reason: str
) -> None:
    """The second was held and has been released."""
    add_attempt(run, on=("node1",), end=ON_SIGNAL, step=40)
    slurm_says(tmp_path, monkeypatch, squeue=[f"7|{state}|{reason}||N/A|N/A"])
    assert (status.read_status(run).state, status.read_status(run).alive) == ("pending", True)


@pytest.mark.parametrize("end", [FINISHED, ASKED])
def test_a_run_that_is_done_waits_for_nothing_whatever_slurm_does_with_its_job(
    run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: End
) -> None:
    """SLURM 24.05 and later queue it once more after a preemption with grace time, or call it preempted."""
    add_attempt(run, on=("node1",), end=end, step=end.step)
    slurm_says(tmp_path, monkeypatch, squeue=["7|PENDING|BeginTime||N/A|N/A"])
    row = status.read_status(run)
    assert (row.state, row.alive, row.source) == ("finished" if end is FINISHED else "stopped", False, "records")


def test_a_silent_run_that_slurm_calls_running(run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slurm_says(tmp_path, monkeypatch, squeue=[running()])
    add_attempt(run, on=("node1",), step=40, ago=500)
    assert "no sign of life for 500 s" in status.read_status(run).detail


@pytest.mark.parametrize(
    ("ago", "state", "detail", "source"),
    [
        (0, "running", "", "heartbeat"),
        (900, "lost", "lost, cause unknown; SLURM here knows nothing of job 7", "records"),
    ],
)
def test_where_slurm_does_not_answer_the_ranks_do(
    run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ago: float, state: str, detail: str, source: str
) -> None:
    slurm_says(tmp_path, monkeypatch)
    add_attempt(run, on=("node1",), step=40, ago=ago)
    row = status.read_status(run)
    assert (row.state, row.detail, row.source) == (state, detail, source)


@pytest.mark.parametrize(
    ("end", "state", "detail"),
    [(FINISHED, "finished", ""), (ASKED, "stopped", "stop asked for by Ada"), (ON_SIGNAL, "stopped", "on SIGTERM")],
)
def test_how_a_local_run_ended(tmp_path: Path, end: End, state: str, detail: str) -> None:
    local = make_run(tmp_path, "local")
    add_attempt(local, end=end, step=end.step)
    row = status.read_status(local)
    assert (row.state, row.detail, row.step, row.source) == (state, detail, end.step, "records")


def test_a_local_run_is_running_while_its_lock_is_held(tmp_path: Path) -> None:
    local = make_run(tmp_path, "local")
    with hold_run(local) as lock:
        assert status.read_status(local).state == "submitting"
        name_attempt(lock, add_attempt(local, step=3).number)
        assert (status.read_status(local).state, status.read_status(local).source) == ("running", "lock")
    assert (status.read_status(local).state, status.read_status(local).detail) == ("lost", "lost, cause unknown")
    add_failure(local.attempt(1), 0, "here", "no such layer", time.time())
    assert status.read_status(local).state == "failed"
    with hold_run(local):  # a look at the lock has not kept it
        pass


def test_a_run_submitted_again_after_its_end_waits_in_the_queue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path, "more")
    add_attempt(run, end=FINISHED, step=STEPS)
    again = make_run(tmp_path / "other", "more", job="7", after=1)
    again.job_path.rename(run.job_path)
    slurm_says(tmp_path, monkeypatch, squeue=["7|PENDING|Priority||N/A|N/A"])
    assert (status.read_status(run).state, status.read_status(run).detail) == ("pending", "Priority")


def test_a_broken_folder_does_not_hide_the_others(tmp_path: Path) -> None:
    add_attempt(make_run(tmp_path, "good"), end=FINISHED, step=STEPS)
    add_attempt(make_run(tmp_path, "bad")).plan_path.write_text("{")
    done = CliRunner().invoke(cli, ["status", str(tmp_path), "--json"])
    states = {row["name"]: row["state"] for row in json.loads(done.stdout)}
    assert (done.exit_code, states) == (0, {"good": "finished", "bad": "unreadable"})


def test_a_loss_that_is_no_number_leaves_json_readable(tmp_path: Path) -> None:
    run = make_run(tmp_path, "nan")
    add_attempt(run, end=FINISHED, step=STEPS)
    with open(run.metrics_path, "a") as file:
        file.write(json.dumps({"step": STEPS, "loss/train": float("nan"), "time/step_s": 1.0}) + "\n")
    assert json.loads(CliRunner().invoke(cli, ["status", str(run.path), "--json"]).stdout)[0]["loss"] is None
    assert " nan " in CliRunner().invoke(cli, ["status", str(run.path)]).stdout


def test_no_such_run_is_a_users_mistake(tmp_path: Path) -> None:
    for words in (["nowhere"], []):
        done = lockstep("status", *words, cwd=tmp_path)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert "contains no runs" in done.stderr


@pytest.mark.parametrize("before", [0, 1, 200])
@pytest.mark.parametrize("half", ["", '{"step": 9'])
def test_the_last_whole_line_is_read_from_the_end(tmp_path: Path, before: int, half: str) -> None:
    file = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": step, "filler": "x" * 100}) + "\n" for step in range(before)]
    file.write_text("".join(lines) + half)
    assert (read_last_line(file) or {"step": None})["step"] == (before - 1 if before else None)
    assert read_last_line(tmp_path / "none") is None


def test_why_of_a_job_that_slurm_holds_does_not_call_it_ended(
    run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm_says(tmp_path, monkeypatch, squeue=["7|PENDING|launch failure limit exceeded requeued held||N/A|N/A"])
    add_failure(add_attempt(run, on=("node1",), ago=99), 0, "node1", "no such layer", time.time())
    assert "then     its job is held; once released it starts from the beginning" in explain_failure(run), (
        explain_failure(run)
    )
    assert "scontrol release 7" in explain_failure(run)
    assert "ended its job" not in explain_failure(run)
