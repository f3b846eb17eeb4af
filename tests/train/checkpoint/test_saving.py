"""A save may be slow, stuck or impossible: the run goes on or ends cleanly, and nothing is torn."""

import contextlib
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from store.checkpoint import checkpoints
from store.files import write_atomic
from store.run.end import End
from store.run.records import Allocation, read_failures
from store.run.run_dir import RunDir
from tests.ranks import Ranks, start_ranks
from tests.runs import new_run, next_attempt
from tests.shell import until

PROGRAM = Path(__file__).parents[1] / "faulty_attempt.py"
SETTINGS = {"micro_batch": 3, "zero": 2, "checkpoint": {"every_steps": 2, "keep": 9}}
# On a slow disk an asynchronous save comes late; these come at the very steps that are due.
SYNC = SETTINGS | {"checkpoint": {"every_steps": 2, "keep": 9, "mode": "sync"}}


def start(run: RunDir, fault: dict | None = None, **changes) -> Ranks:
    attempt = next_attempt(run, 2, **changes)
    return start_ranks(2, PROGRAM, run.path, attempt.number, json.dumps(fault or {}))


def test_a_checkpoint_stands_though_its_note_cannot_be_written(tmp_path, pipeline_folder, image_folder):
    """The run's folder and its checkpoints may lie on two file systems, of which the one is full."""
    run = new_run(tmp_path / "run", pipeline_folder, image_folder, **SETTINGS)
    full = {"rank": 0, "call": "replace", "on": "saved.json", "count": 1, "when": "before", "do": "full"}
    ranks = start(run, full, steps=4)
    assert ranks.wait() == [0, 0], ranks.said()[-3000:]
    assert "saved.json could not be written: No space left on device" in ranks.said()
    assert "a checkpoint was not saved" not in ranks.said()
    assert check_all_verify(run) == [2, 4]


def steps_of(run: RunDir) -> list[int]:
    return (
        [json.loads(line)["step"] for line in run.metrics_path.read_text().splitlines()]
        if run.metrics_path.exists()
        else []
    )


def check_all_verify(run: RunDir) -> list[int]:
    there = checkpoints.list_checkpoints(run)
    assert [problem for checkpoint in there for problem in checkpoint.verify()] == []
    assert not list(run.checkpoints_path.glob("tmp-*"))
    return [checkpoint.step for checkpoint in there]


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system with room for two checkpoints of the tiny model and a little more."""
    if os.geteuid() != 0:
        pytest.skip("mounts a small tmpfs, which needs root")
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=9m", "tmpfs", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_costs_saves_and_not_the_run(small_disk, pipeline_folder, image_folder):
    run = new_run(small_disk / "run", pipeline_folder, image_folder, steps=12, **SYNC)
    ranks = start(run)
    codes = ranks.wait()
    assert steps_of(run) == list(range(1, 13)), "training went on to the last step"
    assert codes != [0, 0], "the last checkpoint could not be saved, so the run is not finished"
    assert "ALARM: a checkpoint was not saved" in ranks.said()
    assert "GiB are needed in" in ranks.said()
    kept = check_all_verify(run)
    assert kept[0] == 2
    alarms = [json.loads(line)["writes/failed_checkpoints"] for line in run.metrics_path.read_text().splitlines()]
    assert alarms[0] == 0
    assert alarms[-1] > 0


def test_a_disk_without_one_free_byte_stops_no_training(small_disk, pipeline_folder, image_folder):
    """Not even metrics, logs and signs of life can be written."""
    run = new_run(small_disk / "run", pipeline_folder, image_folder, steps=60, **SYNC)
    ranks = start(run)
    until(lambda: checkpoints.list_checkpoints(run))
    with contextlib.suppress(OSError), open(small_disk / "ballast", "wb", buffering=0) as ballast:
        while True:
            ballast.write(bytes(4096))
    assert ranks.wait() != [0, 0], "the last checkpoint could not be saved, so the run is not finished"
    said = ranks.said()
    assert "step 60/60" in said, "and yet every step was made"
    assert "ALARM: metrics and pictures are being lost: [Errno 28]" in said
    assert check_all_verify_but_temporary(run), "what was saved before is whole"


def test_a_disk_that_fills_up_in_the_middle_of_a_file(tmp_path, pipeline_folder, image_folder):
    run = new_run(tmp_path / "run", pipeline_folder, image_folder, steps=8, **SYNC)
    ranks = start(run, {"rank": 1, "call": "write", "on": "fragments-", "count": 5, "when": "before", "do": "full"})
    assert ranks.wait() == [0, 0], ranks.said()[-3000:]
    assert "ALARM: a checkpoint was not saved" in ranks.said()
    assert "No space left on device" in ranks.said()
    assert check_all_verify(run) == [4, 6, 8]


def test_a_copy_that_fails_is_told_with_its_reason(tmp_path, pipeline_folder, image_folder):
    """Whatever it was: a broken GPU and a full machine raise no OSError."""
    run = new_run(tmp_path / "run", pipeline_folder, image_folder, steps=6, **SYNC)
    ranks = start(run, {"fail_copies": True})
    assert ranks.wait() == [0, 0], ranks.said()[-3000:]
    alarms = [line for line in ranks.said().splitlines() if line.startswith("ALARM")]
    assert len(alarms) == 2, alarms
    path = r"ALARM: a checkpoint was not saved: \S+/fragments-00001.safetensors"
    assert re.fullmatch(rf"{path}: RuntimeError: CUDA error: an illegal memory access was encountered", alarms[0])
    assert re.fullmatch(rf"{path}: MemoryError", alarms[1])
    assert check_all_verify(run) == [6]


def test_checkpoints_are_listed_at_the_start_and_to_prune(tmp_path, pipeline_folder, image_folder):
    """What is known is passed on: the newest checkpoint, to the record of the end and to the export, too."""
    run = new_run(tmp_path / "run", pipeline_folder, image_folder, **SYNC)
    for steps, commits in ((6, 3), (8, 1)):
        attempt = next_attempt(run, 2, steps=steps)
        ranks = start_ranks(2, Path(__file__).with_name("count_listings.py"), run.path, attempt.number)
        assert ranks.wait() == [0, 0], ranks.said()[-3000:]
        listings = dict(re.findall(r"listings of rank (\d): *(.*)", ranks.said()))
        assert listings["0"].split() == ["_find_good"] + ["Commit._prune"] * commits
        assert listings["1"] == "", "the others are told"
        end = End.read_if_written(attempt.end_path)
        assert end is not None
        assert (end.step, end.checkpoint) == (steps, f"step-{steps:08d}-a{attempt.number:04d}")
        assert json.loads((run.pipeline_path / "lockstep.json").read_text())["step"] == steps


def test_a_slow_rank_holds_back_only_the_commit(tmp_path, pipeline_folder, image_folder):
    run = new_run(tmp_path / "run", pipeline_folder, image_folder, steps=10, **SETTINGS)
    ranks = start(run, {"rank": 1, "call": "fsync", "on": "fragments-", "count": 1, "when": "before", "do": "slow"})
    assert ranks.wait() == [0, 0], ranks.said()[-3000:]
    assert steps_of(run) == list(range(1, 11))
    assert check_all_verify(run)[-1] == 10
    said = ranks.said()
    assert said.index("saved step 2") > said.index("step 3/10"), "training did not wait for the slow rank"


@pytest.mark.parametrize(("call", "on"), [("rename", "/tmp-step-"), ("remove", "/checkpoints/step-")])
def test_training_waits_for_no_commit_and_no_removal(tmp_path, pipeline_folder, image_folder, call, on):
    """A parallel file system may take minutes for them."""
    changes = SETTINGS | {"checkpoint": {"every_steps": 2, "keep": 1}, "steps": 40}
    run = new_run(tmp_path / "run", pipeline_folder, image_folder, **changes)
    gate = tmp_path / "gate"
    fault = {"rank": 0, "call": call, "on": on, "count": 1, "when": "before", "do": "wait", "gate": str(gate)}
    ranks = start(run, fault)
    until(lambda: len(steps_of(run)) > 12)
    assert "step 2 is still being written; the next save waits" in ranks.said() or call == "remove"
    gate.touch()
    assert ranks.wait() == [0, 0], ranks.said()[-3000:]
    assert check_all_verify(run) == [40], "and all that was to go is gone when the run ends"


@pytest.mark.parametrize("seed", [0, 1])
def test_a_notice_to_one_rank_stops_all_at_one_saved_step(tmp_path, pipeline_folder, image_folder, seed):
    changes = SETTINGS | {"checkpoint": {"every_steps": 1000}, "steps": 1000, "micro_batch": 1}
    run = new_run(tmp_path / "run", pipeline_folder, image_folder, **changes)
    ranks = start(run)
    until(lambda: len(steps_of(run)) > 1 + seed)
    os.kill(ranks.pids[seed], [signal.SIGTERM, signal.SIGUSR2][seed])
    assert ranks.wait() == [75, 75], ranks.said()[-3000:]
    end = End.read_if_written(run.attempt(1).end_path)
    assert end is not None
    assert (end.reason, end.step) == ("notice", steps_of(run)[-1])
    assert check_all_verify(run) == [end.step], "not a step is lost"
    positions = [len((run.path / f"positions-1-{rank}").read_text().splitlines()) for rank in range(2)]
    assert positions[0] == positions[1] == 6 * end.step


def test_people_ask_for_a_checkpoint_and_then_for_the_end(tmp_path, pipeline_folder, image_folder):
    changes = SETTINGS | {"checkpoint": {"every_steps": 1000}, "steps": 1000}
    run = new_run(tmp_path / "run", pipeline_folder, image_folder, **changes)
    ranks = start(run)
    until(lambda: steps_of(run))
    write_atomic(run.save_request_path, "Ada on login1")
    saved = until(lambda: check_all_verify_but_temporary(run))
    until(lambda: steps_of(run)[-1] > saved[0])
    assert check_all_verify_but_temporary(run) == saved, "one request is one checkpoint"
    write_atomic(run.stop_request_path, "Ada on login1")
    assert ranks.wait() == [75, 75], ranks.said()[-3000:]
    end = End.read(run.attempt(1).end_path)
    assert end is not None
    assert (end.notice, end.requested_by_user) == ("stop requested by Ada on login1", True)
    assert check_all_verify(run) == [*saved, end.step]


def test_a_time_limit_is_seen_before_slurm_tells(tmp_path, pipeline_folder, image_folder):
    run = new_run(tmp_path / "run", pipeline_folder, image_folder, steps=100_000, **SETTINGS)
    attempt = next_attempt(run, 2)
    Allocation("1", ["node1"], time.time(), deadline=time.time() + 30).write(attempt.allocation_path)
    ranks = start_ranks(2, PROGRAM, run.path, attempt.number, "{}")
    assert ranks.wait() == [75, 75], ranks.said()[-3000:]
    end = End.read_if_written(run.attempt(1).end_path)
    assert end is not None
    assert (end.reason, end.step) == ("notice", steps_of(run)[-1])
    assert re.fullmatch(r"the time limit in \d+ s", str(end.notice))
    assert not end.requested_by_user, "so that it goes on by itself"
    assert check_all_verify(run)[-1] == end.step


def test_a_frozen_rank_is_named(tmp_path, pipeline_folder, image_folder):
    changes = SETTINGS | {"checkpoint": {"every_steps": 3, "notice_seconds": 12}, "steps": 1000}
    run = new_run(tmp_path / "run", pipeline_folder, image_folder, **changes)
    ranks = start(run)
    until(lambda: [c for c in checkpoints.list_checkpoints(run) if c.step >= 3])
    os.kill(ranks.pids[1], signal.SIGSTOP)
    os.kill(ranks.pids[0], signal.SIGUSR2)
    assert ranks.wait() == [1, -signal.SIGKILL], ranks.said()[-3000:]
    report = read_failures(run.attempt(1))[0]
    late = rf"SIGUSR2 received, but the ranks did not stop within \d+ s: rank 1 on {report.host} does not answer"
    assert re.fullmatch(late + r" \(last heartbeat \d+ s ago\): it is stopped by a signal.*", report.message)
    assert check_all_verify_but_temporary(run)


def check_all_verify_but_temporary(run: RunDir) -> list[int]:
    """Where ranks were killed, a half-written folder may lie there until the next start sweeps it."""
    there = checkpoints.list_checkpoints(run)
    assert [problem for checkpoint in there for problem in checkpoint.verify()] == []
    return [checkpoint.step for checkpoint in there]


def test_a_stuck_writer_stops_no_training_and_no_notice(tmp_path, pipeline_folder, image_folder):
    changes = SETTINGS | {"checkpoint": {"every_steps": 2, "notice_seconds": 8}, "steps": 1000}
    run = new_run(tmp_path / "run", pipeline_folder, image_folder, **changes)
    fault = {"rank": 1, "call": "fsync", "on": "fragments-", "count": 2, "when": "before", "do": "hang"}
    ranks = start(run, fault)
    until(lambda: check_all_verify_but_temporary(run) == [2])
    until((run.attempt(1).path / "fired").exists)
    stuck_at = len(steps_of(run))
    until(lambda: len(steps_of(run)) > stuck_at + 5)
    assert check_all_verify_but_temporary(run) == [2]
    for pid in ranks.pids:
        os.kill(pid, signal.SIGUSR2)
    codes = ranks.wait()
    assert 75 not in codes, "the last step could not be saved, so it does not say so"
    assert set(codes) <= {1, -signal.SIGKILL}
    assert check_all_verify_but_temporary(run) == [2]
    first = read_failures(run.attempt(1))[0].message
    assert re.search(r"rank 1 on \S+ has been writing its part of the checkpoint, after", first), (
        "and it says what hung"
    )
