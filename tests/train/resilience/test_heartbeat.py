"""The heartbeats of a real attempt: what `status`, `why` and the watchdogs of other ranks know a rank by."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from store.run.end import End
from store.run.records import HeartbeatRecord, read_heartbeats
from store.run.run_dir import RunDir
from tests.ranks import start_ranks
from tests.runs import new_run, next_attempt
from tests.shell import until
from train.context import RankContext
from train.progress import Progress
from train.resilience.heartbeat import Heartbeat
from train.resilience.monitor import RankMonitor

PROGRAM = Path(__file__).parents[1] / "faulty_attempt.py"
STEPS = 2


def test_they_go_on_until_the_export_is_done(tmp_path, pipeline_folder, image_folder):
    """Also where a notice comes meanwhile: nobody waits for a step any more, so nobody is to be killed for it."""
    checkpoint = {"every_steps": 1, "notice_seconds": 2}
    run = new_run(tmp_path / "run", pipeline_folder, image_folder, steps=STEPS, checkpoint=checkpoint)
    attempt, gate = next_attempt(run, 2), tmp_path / "gate"
    ranks = start_ranks(2, PROGRAM, run.path, attempt.number, json.dumps({"export_waits_for": str(gate)}))

    def beat(rank: int, activity: str, after: float = 0) -> HeartbeatRecord | None:
        """The heartbeat of `rank`, once it says `activity` and is later than `after`, in seconds since the epoch."""
        record = read_heartbeats(attempt).get(rank)
        return record if record is not None and record.doing == activity and record.time > after else None

    try:
        first = until(lambda: beat(0, "exporting"))
        os.kill(ranks.pids[0], signal.SIGUSR2)
        last = until(lambda: beat(0, "exporting", after=first.time + 8))
        other = until(lambda: beat(1, "waiting for the other ranks to export", after=first.time))
        assert first.step == last.step == other.step == STEPS
        assert not attempt.end_path.exists()
    finally:
        gate.touch()
    assert ranks.wait() == [0, 0], ranks.said()[-3000:]
    assert End.read(attempt.end_path) == End("finished", STEPS, f"step-{STEPS:08d}-a0001")


def test_it_is_whole_and_waits_for_no_disk(tmp_path, monkeypatch):
    """A rank writes one every second into a file system that all share."""
    run = RunDir(tmp_path / "run")
    context = RankContext(run, run.open_attempt(), None, None, SimpleNamespace(rank=3), Progress(), None)
    context.progress.record_step(5, 0.1)
    context.progress.set_activity("waiting for samples")
    monkeypatch.setattr(os, "fsync", lambda descriptor: pytest.fail("a heartbeat waits for the disk"))
    Heartbeat(context).write(None)
    Heartbeat(context).write(1234.5)
    [(rank, beat)] = read_heartbeats(context.attempt).items()
    assert (rank, beat.step, beat.doing, beat.pid, beat.due) == (3, 5, "waiting for samples", os.getpid(), 1234.5)
    assert beat.since <= beat.time
    assert len(list(context.attempt.heartbeat_path(3).parent.iterdir())) == 1, "nothing is left beside it"


def make_context(run: RunDir, ranks: int) -> RankContext:
    config = SimpleNamespace(hang_seconds=600.0)
    world = SimpleNamespace(rank=0, size=ranks, is_main_process=False)
    return RankContext(run, run.open_attempt(), None, config, world, Progress(), SimpleNamespace(since=None))


def test_the_first_is_there_at_once(tmp_path):
    """A small run makes its first steps within a second, and a rank that stops then has a name and a host, too."""
    context = make_context(RunDir(tmp_path / "run"), ranks=2)
    RankMonitor(context).stop()
    assert list(read_heartbeats(context.attempt)) == [0]


@pytest.mark.parametrize(("ranks", "seconds"), [(1, 1), (8, 1), (64, 8), (80, 10), (1000, 10)])
def test_many_ranks_give_them_less_often(tmp_path, ranks, seconds):
    """Each makes a file and renames it, in a file system that all share: eight times a second, up to 80 ranks."""
    monitor = RankMonitor(make_context(RunDir(tmp_path / "run"), ranks))
    monitor.stop()
    periods = [period for period in range(31) if monitor._write_heartbeat in monitor._duties(period)]
    assert periods == list(range(0, 31, seconds))
    assert monitor.watchdog.silence == 5 * seconds


_DEAF = """
import ctypes, sys
from pathlib import Path
from types import SimpleNamespace
from store.run.run_dir import RunDir
from train.context import RankContext
from train.progress import Progress
from train.resilience import monitor

def hold_the_interpreter():
    ctypes.PyDLL(None).sleep(4)

monitor.DEAF = 2.0
run, config = RunDir(Path(sys.argv[1])), SimpleNamespace(hang_seconds=600.0)
world = SimpleNamespace(rank=0, size=1, is_main_process=False)
watch = monitor.RankMonitor(
    RankContext(run, run.open_attempt(), None, config, world, Progress(), SimpleNamespace(since=None))
)
hold_the_interpreter()
watch.stop()
"""


def test_a_main_thread_that_lets_no_other_one_run_leaves_its_stack_in_the_log(tmp_path):
    """As in a call of C++ that hangs and has not let go of Python: no heartbeat comes, and no Python code runs."""
    command = [sys.executable, "-c", _DEAF, str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "Timeout (0:00:02)!" in done.stdout
    assert "in hold_the_interpreter" in done.stdout
