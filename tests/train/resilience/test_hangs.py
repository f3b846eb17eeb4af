"""An attempt that hangs ends by itself, without a notice, with every rank's stacks and the name of the stuck one."""

import json
import os
import re
import signal
import time
from pathlib import Path

import pytest

from slurm.recovery.cause import find_cause
from store.checkpoint import checkpoints
from store.run.end import End
from store.run.records import StuckRank, read_failures, read_heartbeats
from store.run.run_dir import Attempt, RunDir
from tests.ranks import Ranks, start_ranks
from tests.runs import new_run, next_attempt
from tests.shell import until
from train.resilience.heartbeat import HOST

PROGRAM = Path(__file__).parents[1] / "faulty_attempt.py"
HANG = 6.0  # seconds; the watchdog takes twice the time after which a rank counts as silent, where that is more


@pytest.fixture
def run(tmp_path: Path, pipeline_folder: Path, image_folder: Path) -> RunDir:
    checkpoint = {"every_steps": None, "every_minutes": None, "notice_seconds": 60}
    return new_run(
        tmp_path / "run", pipeline_folder, image_folder, steps=100_000, hang_seconds=HANG, checkpoint=checkpoint
    )


def start(run: RunDir, fault: dict, **changes: object) -> tuple[Attempt, Ranks]:
    attempt = next_attempt(run, 2, **changes)
    return attempt, start_ranks(2, PROGRAM, run.path, attempt.number, json.dumps(fault))


def has_made(attempt: Attempt, steps: int) -> bool:
    beats = read_heartbeats(attempt)
    return len(beats) == 2 and min(beat.step for beat in beats.values()) >= steps


def test_a_rank_that_is_stopped_ends_the_attempt_and_is_the_nodes_fault(run: RunDir) -> None:
    attempt, ranks = start(run, {})
    until(lambda: has_made(attempt, 3))
    began = time.time()
    os.kill(ranks.pids[1], signal.SIGSTOP)
    assert ranks.wait() == [1, -signal.SIGKILL], ranks.said()[-3000:]

    [report] = read_failures(attempt)
    assert report.time - began > HANG
    assert re.fullmatch(
        rf"no rank made progress for \d+ s: rank 1 on {HOST} does not answer \(last heartbeat \d+ s ago\): "
        r"it is stopped by a signal( \(.*\))?",
        report.message,
    )
    assert report.stuck == StuckRank(1, HOST, answers=False)
    ours = attempt.stack_path(0).read_text()
    assert re.match(rf"rank 0 on {HOST} .*, after \d+ steps, for \d+ s; it waits for the other ranks in \w+\n", ours)
    assert "train/attempt.py" in ours, "the main thread's stack"
    assert "train/resilience/monitor.py" in ours, "and those of the others"
    assert "it is stopped by a signal" in attempt.stack_path(1).read_text()
    assert {path.name for path in attempt.flight_recorder_path.iterdir()} == {"rank-0"}
    cause = find_cause(attempt)
    assert (cause.rank, cause.host, cause.is_infrastructure, cause.suspects_node) == (1, HOST, True, True)
    assert cause.sentence == f"{report.message}; every rank's stacks are in {attempt.stacks_path}"


def test_a_rank_that_goes_round_in_circles_is_named_and_is_the_programs_fault(run: RunDir) -> None:
    attempt, ranks = start(run, {"loop_at": 4})
    codes = ranks.wait()
    assert 0 not in codes, ranks.said()[-3000:]
    report = read_failures(attempt)[0]
    assert re.fullmatch(
        rf"no rank made progress for \d+ s: rank 1 on {HOST} has been .*, after 3 steps, for \d+ s", report.message
    )
    assert report.stuck == StuckRank(1, HOST, answers=True)
    assert re.search(r"faulty_attempt\.py\", line \d+ in micro_loss", attempt.stack_path(1).read_text()), (
        "where it loops"
    )
    assert re.search(r"it waits for the other ranks in \w+\n", attempt.stack_path(0).read_text())
    cause = find_cause(attempt)
    assert (cause.kind, cause.rank) == ("hung", 1)
    assert not cause.is_infrastructure
    assert not cause.suspects_node


def test_what_only_takes_long_goes_on(run: RunDir) -> None:
    """A step within ten times the longest one, and a save whose like has not been seen yet: both longer than a hang."""
    attempt, ranks = start(run, {"slow_at": {2: 2, 3: 12}, "slow_save": 12}, steps=4)
    assert ranks.wait() == [0, 0], ranks.said()[-3000:]
    assert End.read(attempt.end_path).reason == "finished"
    assert checkpoints.list_checkpoints(run)[-1].step == 4
    assert not attempt.stacks_path.exists()
