"""A damaged record is named by whichever command needs it, hides no other run, and is no traceback."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from configs.errors import LockstepError
from launcher.cli.main import cli
from store.run.end import End
from store.run.records import ResumePoint, SavedCheckpoint
from store.run.run_dir import Attempt, RunDir
from tests.launcher.desk import Desk, begun
from tests.launcher.folders import STEPS, add_attempt, add_failure, make_run

PLACES: dict[str, Callable[[RunDir, Attempt], Path]] = {
    "plan": lambda _, attempt: attempt.plan_path,
    "resume": lambda _, attempt: attempt.resume_path,
    "saved": lambda _, attempt: attempt.saved_path,
    "end": lambda _, attempt: attempt.end_path,
    "allocation": lambda _, attempt: attempt.allocation_path,
    "heartbeat": lambda _, attempt: attempt.heartbeat_path(1),
    "failure": lambda _, attempt: attempt.failure_path(1),
    "job": lambda run, _: run.job_path,
    "submission": lambda run, _: run.submission_path,
}
SHOWN_BY_STATUS = ("plan", "end", "allocation", "job", "failure")
COMMANDS = [
    *(f"{command} {{run}}" for command in ("status", "why", "stop", "save", "cancel", "logs", "checkpoints")),
    "plan {file}",
    "sweep {file} lr=1e-5,2e-5",
    "submit {file}",
]


def damage(path: Path, kind: str) -> None:
    path.parent.mkdir(exist_ok=True)
    whole = path.read_text() if path.is_file() else "{}"
    path.write_text({"half": whole[: len(whole) // 2], "list": f"[{whole}]", "newer": '{"schema": 99}'}[kind])


@pytest.mark.parametrize("kind", ["half", "list", "newer"])
@pytest.mark.parametrize("record", SHOWN_BY_STATUS)
def test_status_names_it_and_shows_the_others(desk: Desk, record: str, kind: str) -> None:
    runs = desk.folder / "all"
    add_attempt(make_run(runs, "good"), end=End("finished", STEPS, None), step=STEPS)
    bad = make_run(runs, "bad", job="7")
    attempt = add_attempt(bad, on=("node1",), ago=99)
    add_failure(attempt, 1, "node1", "no such layer", 1.0)
    damage(PLACES[record](bad, attempt), kind)
    code, text = desk.lockstep("status", runs, "--json")
    rows = {row["name"]: row for row in json.loads(text)}
    assert (code, rows["good"]["state"], rows["bad"]["state"]) == (0, "finished", "unreadable")
    assert rows["bad"]["detail"].startswith(f"{PLACES[record](bad, attempt)}: ")


@pytest.mark.parametrize("kind", ["half", "list", "newer"])
def test_a_local_run_without_a_lock_hides_no_other(desk: Desk, kind: str) -> None:
    """Whether it lives, its ranks' heartbeats have to tell."""
    runs = desk.folder / "all"
    add_attempt(make_run(runs, "good"), end=End("finished", STEPS, None), step=STEPS)
    bad = make_run(runs, "bad")
    attempt = add_attempt(bad)
    damage(attempt.heartbeat_path(1), kind)
    code, text = desk.lockstep("status", runs, "--json")
    states = {row["name"]: row["state"] for row in json.loads(text)}
    assert (code, states) == (0, {"good": "finished", "bad": "unreadable"})


@pytest.mark.parametrize("line", ['{"step": 6}', "[]", '{"step": null}'])
def test_a_short_line_of_metrics_hides_no_run(desk: Desk, line: str) -> None:
    runs = desk.folder / "all"
    add_attempt(make_run(runs, "good"), end=End("finished", STEPS, None), step=STEPS)
    bad = make_run(runs, "bad", job="7")
    add_attempt(bad, on=("node1",), step=6)
    desk.knows("7|RUNNING|None|node1|N/A|N/A")
    with open(bad.metrics_path, "a") as file:
        file.write(line + "\n")
    code, text = desk.lockstep("status", runs, "--json")
    states = {row["name"]: row["state"] for row in json.loads(text)}
    assert (code, states) == (0, {"good": "finished", "bad": "unreadable"})


@pytest.mark.parametrize("record", PLACES)
def test_no_command_answers_with_a_traceback(desk: Desk, record: str) -> None:
    run = desk.submitted()
    attempt = begun(run, step=4, ago=99)
    ResumePoint(0, None, "nonce").write(attempt.resume_path)
    SavedCheckpoint("step-00000004-a0001").write(attempt.saved_path)
    add_failure(attempt, 1, "node1", "no such layer", 1.0)
    place = PLACES[record](run, attempt)
    damage(place, "half")
    naming = []
    for words in COMMANDS:
        done = CliRunner().invoke(cli, [word.format(run=run.path, file=desk.file) for word in words.split()])
        assert isinstance(done.exception, LockstepError | SystemExit | None), (words, done.exc_info)
        if f"{place}: " in f"{done.output} {done.exception}":
            naming.append(words)
    assert naming or record == "saved", "saved.json is only read where a run begins without a checkpoint"
