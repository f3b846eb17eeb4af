"""When a watchdog finds that the ranks hang, and whom it blames: what a person reads of it in `why`."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from store.run.run_dir import RunDir
from train.context import RankContext
from train.progress import IN_PASSES, Progress
from train.resilience import stacks
from train.resilience.heartbeat import HOST, Heartbeat
from train.resilience.watchdog import Watchdog


@pytest.fixture
def context(tmp_path: Path) -> RankContext:
    """Of one of two ranks."""
    run = RunDir(tmp_path / "run")
    attempt = run.open_attempt()
    attempt.heartbeat_path(0).parent.mkdir()
    config = SimpleNamespace(checkpoint=SimpleNamespace(notice_seconds=12.0), hang_seconds=600.0)
    return RankContext(run, attempt, None, config, SimpleNamespace(size=2, rank=0), Progress(), None)


def watch(context: RankContext) -> Watchdog:
    return Watchdog(context, Heartbeat(context))


def name_stuck_rank(context: RankContext) -> str:
    return watch(context).find_stuck_rank()[1]


def beat(
    context: RankContext,
    rank: int,
    doing: str,
    *,
    step: int = 7,
    ago: float = 0,
    since: float = 0,
    due_in: float | None = None,
    collectives: int | None = None,
) -> None:
    """A heartbeat of `ago` seconds, of a rank that has been `doing` this for `since` seconds."""
    now = time.time()
    values = {"time": now - ago, "rank": rank, "step": step, "doing": doing, "since": now - since}
    values |= {"due": None if due_in is None else now + due_in, "collectives": collectives}
    context.attempt.heartbeat_path(rank).write_text(json.dumps(values | {"host": "node1", "pid": 1}))


def test_a_rank_without_heartbeats_is_unresponsive(context: RankContext) -> None:
    beat(context, 0, "in a micro-batch's passes", since=60)
    beat(context, 1, "in a micro-batch's passes", ago=9)
    assert name_stuck_rank(context) == "rank 1 on node1 does not answer (last heartbeat 9 s ago)"


def test_a_rank_that_never_came_so_far(context: RankContext) -> None:
    beat(context, 0, "loading")
    assert name_stuck_rank(context) == "rank 1 never gave a heartbeat"


def test_who_waits_for_others_is_not_the_one(context: RankContext) -> None:
    """Rank 0 has waited longer, and only since rank 1 does not come."""
    beat(context, 0, "waiting for the other ranks to write their parts of the checkpoint", since=60)
    beat(context, 1, "writing its part of the checkpoint", since=50)
    sentence = "rank 1 on node1 has been writing its part of the checkpoint, after 7 steps, for 50 s"
    assert name_stuck_rank(context) == sentence


def test_the_rank_with_the_fewest_steps_is_the_one(context: RankContext) -> None:
    beat(context, 0, "in a micro-batch's passes", since=60)
    beat(context, 1, "waiting for samples", step=6, since=50)
    assert name_stuck_rank(context) == "rank 1 on node1 has been waiting for samples, after 6 steps, for 50 s"


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
    assert name_stuck_rank(context).startswith(answer)


def test_what_has_taken_longer_before_may_do_so_again(context: RankContext) -> None:
    watchdog = watch(context)
    assert watchdog.stop_timeout == 6
    for step, seconds in enumerate((2.0, 10.0, 1.0), 1):
        context.progress.record_step(step, seconds)
    context.progress.record_save(4.0)
    assert watchdog.stop_timeout == 2 * (10 + 4)


def test_a_first_step_that_compiled_is_no_measure_of_the_later_ones(context: RankContext) -> None:
    watchdog, progress = watch(context), context.progress
    progress.set_activity(IN_PASSES)
    progress.since -= 300.0
    progress.record_step(1, 300.0)
    progress.set_activity("reporting")
    progress.set_activity(IN_PASSES)
    assert (watchdog.stop_timeout, watchdog.hang_timeout) == pytest.approx((600, 3000)), "until another step has ended"
    progress.record_step(2, 1.0)
    progress.set_activity("reporting")
    progress.set_activity(IN_PASSES)
    assert (watchdog.stop_timeout, watchdog.hang_timeout) == (6, 600)


def test_a_notice_in_the_first_step_blames_no_rank_that_compiles(context: RankContext) -> None:
    stop = SimpleNamespace(since=time.monotonic() - 1000, reason="SIGUSR2")
    watchdog = watch(dataclasses.replace(context, stop=stop))
    context.progress.set_activity(IN_PASSES)
    context.progress.since -= 500
    assert watchdog._find_late_stop() is None
    context.progress.record_step(1, 2.0)
    assert watchdog._find_late_stop() == "SIGUSR2 received, but the ranks did not stop within 6 s"


def test_ranks_that_wait_for_each_other_are_all_told_and_none_is_blamed(context: RankContext) -> None:
    beat(context, 0, "waiting for the other ranks in all_reduce")
    beat(context, 1, "waiting for the other ranks in broadcast")
    sentence = "all ranks wait for each other: rank 0 in all_reduce; rank 1 in broadcast"
    assert watch(context).find_stuck_rank() == (None, sentence)


def test_on_gpus_the_rank_that_is_behind_in_collectives_is_the_one(context: RankContext) -> None:
    """There a collective is only queued, and every rank is in its micro-batch's passes."""
    beat(context, 0, "in a micro-batch's passes", since=60, collectives=812)
    beat(context, 1, "in a micro-batch's passes", since=50, collectives=811)
    assert name_stuck_rank(context).startswith("rank 1 on node1 has been in a micro-batch's passes, after 7 steps")
    beat(context, 1, "in a micro-batch's passes", since=50)
    assert name_stuck_rank(context).startswith("rank 0"), "not all have told"


@pytest.fixture
def late(context: RankContext) -> RankContext:
    """Rank 0 has been at its third micro-batch for an hour and more, where one took a second and a step two."""
    for seconds in (1.0, 1.0, 4000.0):
        context.progress.set_activity("waiting for samples")
        context.progress.set_activity("in a micro-batch's passes")
        context.progress.since -= seconds
    context.progress.record_step(1, 2.0)
    return context


def find_hang(context: RankContext) -> str | None:
    """As of a watchdog that has looked once a second for two hours."""
    watchdog = watch(context)
    watchdog.awake_since -= 7200
    return watchdog._find_hang()


def test_no_rank_makes_progress(late: RankContext) -> None:
    assert watch(late).hang_timeout == 600
    beat(late, 0, "in a micro-batch's passes", since=4000, due_in=-3400)
    beat(late, 1, "in a micro-batch's passes", since=3990, ago=3990, due_in=-3390)
    assert find_hang(late) == "no rank made progress for 3990 s"


def test_a_rank_that_fell_silent_while_it_was_loading_is_not_waited_for(late: RankContext) -> None:
    beat(late, 0, "in a micro-batch's passes", since=4000, due_in=-3400)
    beat(late, 1, "loading", since=4100, ago=3999)
    assert find_hang(late) == "no rank made progress for 4000 s"


@pytest.mark.parametrize("due_in", [30, None])
def test_one_rank_that_may_take_its_time_keeps_all_alive(late: RankContext, due_in: float | None) -> None:
    """It writes a large checkpoint for the first time, say, or it exports."""
    beat(late, 0, "in a micro-batch's passes", since=4000, due_in=-3400)
    beat(late, 1, "writing its part of the checkpoint", since=1000, due_in=due_in)
    assert find_hang(late) is None


def test_a_process_that_was_itself_stopped_waits_again(late: RankContext) -> None:
    """As where SLURM suspends a job for an hour: on waking up every heartbeat is as old as this rank's own."""
    for rank in (0, 1):
        beat(late, rank, "in a micro-batch's passes", since=4000, ago=4000, due_in=-3400)
    watchdog = watch(late)
    watchdog.awake_since -= 7200
    watchdog.last_look -= 3600
    assert watchdog._find_hang() is None
    assert watchdog._find_hang() is None
    watchdog.awake_since -= 601
    assert watchdog._find_hang() is not None


def test_how_long_an_activity_may_take(context: RankContext) -> None:
    progress, watchdog = context.progress, watch(context)
    assert (watchdog.hang_timeout, watchdog.find_due()) == (None, None), "loading takes as long as it takes"
    progress.set_activity("in a micro-batch's passes")
    assert watchdog.hang_timeout == 1800, "the first one may compile"
    assert watchdog.find_due() == progress.since + 1800
    progress.set_activity("writing its part of the checkpoint")
    assert watchdog.hang_timeout == 1800
    progress.record_save(100.0)
    progress.set_activity("in a micro-batch's passes")
    assert watchdog.hang_timeout == 600
    progress.record_step(1, 90.0)
    assert watchdog.hang_timeout == 900, "ten times the longest step"
    progress.set_activity("writing its part of the checkpoint")
    assert watchdog.hang_timeout == 1000, "ten times the longest save"
    progress.record_step(2, 600.0)
    assert watchdog.hang_timeout == 3240, "before a collective would time out without naming anybody"


def test_a_neighbour_that_does_not_answer_is_looked_at(context: RankContext, tmp_path: Path) -> None:
    process = subprocess.Popen(["sleep", "60"])
    try:
        process.send_signal(signal.SIGSTOP)
        os.waitpid(process.pid, os.WUNTRACED)
        beat(context, 1, "waiting for samples", ago=99)
        path = context.attempt.heartbeat_path(1)
        path.write_text(json.dumps(json.loads(path.read_text()) | {"host": HOST, "pid": process.pid}))
        beat(context, 0, "waiting for samples")
        context.attempt.flight_recorder_path.mkdir()
        watchdog = watch(context)
        watchdog._write_stacks()
        sentence = rf"rank 1 on {HOST} does not answer \(last heartbeat 99 s ago\): it is stopped by a signal.*"
        assert re.fullmatch(sentence, watchdog.find_stuck_rank()[1])
        assert "test_watchdog.py" in context.attempt.stack_path(0).read_text()
    finally:
        process.kill()
        process.wait()
    assert stacks.describe_process(process.pid) == "its process is gone"
