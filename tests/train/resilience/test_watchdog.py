"""Whom a watchdog blames when the ranks do not stop: what a person reads of it in `why`."""

import json
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from store.run.run_dir import RunDir
from train.context import RankContext
from train.progress import Progress
from train.resilience.watchdog import Watchdog


@pytest.fixture
def context(tmp_path: Path) -> RankContext:
    """Of one of two ranks."""
    run = RunDir(tmp_path / "run")
    attempt = run.open_attempt()
    attempt.heartbeat_path(0).parent.mkdir()
    config = SimpleNamespace(checkpoint=SimpleNamespace(notice_seconds=12.0))
    return RankContext(run, attempt, None, config, SimpleNamespace(size=2, rank=0), Progress(), None)


def beat(context: RankContext, rank: int, doing: str, *, step: int = 7, ago: float = 0, since: float = 0) -> None:
    """A heartbeat of `ago` seconds, of a rank that has been `doing` this for `since` seconds."""
    now = time.time()
    values = {"time": now - ago, "rank": rank, "step": step, "doing": doing, "since": now - since}
    context.attempt.heartbeat_path(rank).write_text(json.dumps(values | {"host": "node1", "pid": 1}))


def test_a_rank_without_heartbeats_is_unresponsive(context: RankContext) -> None:
    beat(context, 0, "in a micro-batch's passes", since=60)
    beat(context, 1, "in a micro-batch's passes", ago=9)
    assert Watchdog(context).find_stuck_rank() == "rank 1 is unresponsive (last heartbeat 9 s ago)"


def test_a_rank_that_never_came_so_far(context: RankContext) -> None:
    beat(context, 0, "loading")
    assert Watchdog(context).find_stuck_rank() == "rank 1 never gave a heartbeat"


def test_who_waits_for_others_is_not_the_one(context: RankContext) -> None:
    """Rank 0 has waited longer, and only since rank 1 does not come."""
    beat(context, 0, "waiting for the other ranks to write their parts of the checkpoint", since=60)
    beat(context, 1, "writing its part of the checkpoint", since=50)
    sentence = "rank 1 has been writing its part of the checkpoint, after 7 steps, for 50 s"
    assert Watchdog(context).find_stuck_rank() == sentence


def test_the_rank_with_the_fewest_steps_is_the_one(context: RankContext) -> None:
    beat(context, 0, "in a micro-batch's passes", since=60)
    beat(context, 1, "waiting for samples", step=6, since=50)
    assert Watchdog(context).find_stuck_rank() == "rank 1 has been waiting for samples, after 6 steps, for 50 s"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("", "rank 1 never gave a heartbeat"),
        ('{"time": 1', "nobody knows which, as the heartbeat of rank 1 cannot be read"),
    ],
)
def test_half_a_heartbeat_does_not_keep_it_from_leaving(context: RankContext, text: str, answer: str) -> None:
    """A file that a broken file system has cut off: the attempt must end all the same."""
    beat(context, 0, "loading")
    context.attempt.heartbeat_path(1).write_text(text)
    assert Watchdog(context).find_stuck_rank().startswith(answer)


def test_what_has_taken_longer_before_may_do_so_again(context: RankContext) -> None:
    watchdog = Watchdog(context)
    assert watchdog.stop_timeout == 6
    context.progress.record_step(1, 10.0)
    context.progress.record_step(2, 1.0)
    context.progress.record_save(4.0)
    assert watchdog.stop_timeout == 2 * (10 + 4)
