"""SIGKILL anywhere: what is visible verifies, nothing goes back, and the run ends as if nobody had disturbed it."""

import json
import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from store.checkpoint import checkpoints
from store.run.records import ResumePoint
from store.run.run_dir import RunDir
from tests.ranks import Ranks, start_ranks
from tests.runs import new_run, next_attempt, values

PROGRAM = Path(__file__).parents[1] / "faulty_attempt.py"
RANKS = 2
SETTINGS = {"micro_batch": 3, "zero": 2, "checkpoint": {"every_steps": 2, "keep": 2}}
FRAGMENTS, MANIFEST = r"/fragments-\d+", "manifest.json"

# every named point of the protocol: (call, path, rank)
POINTS = [
    ("open", FRAGMENTS, 0),
    ("open", FRAGMENTS, 1),
    ("write", FRAGMENTS, 1),
    ("fsync", FRAGMENTS, 0),
    ("fsync", FRAGMENTS, 1),
    ("open", MANIFEST, 0),
    ("fsync", MANIFEST, 0),
    ("replace", MANIFEST, 0),  # of the manifest inside the temporary folder
    ("rename", "/tmp-step-", 0),  # the commit
    ("fsync", "/checkpoints$", 0),  # of the parent folder
    ("rename", "/checkpoints/step-", 0),  # prune: out of sight
    ("remove", "/checkpoints/step-", 0),  # prune: before it, and gone
]
FAULTS = [(call, on, rank, when) for call, on, rank in POINTS for when in ("before", "after")]


def start(run: RunDir, fault: dict | None = None) -> Ranks:
    attempt = next_attempt(run, RANKS)
    return start_ranks(RANKS, PROGRAM, run.path, attempt.number, json.dumps(fault or {}))


def check_visible(run: RunDir, newest: int) -> int:
    """Every visible checkpoint verifies, and the newest is not older than it was. Answers the newest step."""
    there = checkpoints.list_checkpoints(run)
    assert [problem for checkpoint in there for problem in checkpoint.verify()] == []
    steps = [checkpoint.step for checkpoint in there]
    assert max(steps, default=0) >= newest
    return max(steps, default=0)


def check_exactly_once(run: RunDir, batch: int, steps: int) -> None:
    """Over all attempts, rolled-back steps discarded, the consumed positions are 0 … N−1, each once and in order."""
    attempts = run.attempts()
    resumed = [ResumePoint.read_if_written(attempt.resume_path) for attempt in attempts]
    consumed: list[int] = []
    for attempt, record in zip(attempts, resumed, strict=True):
        if record is None:
            continue  # killed before it chose: it made no step
        later = [r.step for r in resumed[attempts.index(attempt) + 1 :] if r is not None]
        last = later[0] if later else steps
        per_step: dict[int, list[int]] = {}
        for path in run.path.glob(f"positions-{attempt.number}-*"):
            for line in path.read_text().splitlines():
                step, positions = json.loads(line)
                per_step.setdefault(step, []).extend(positions)
        for step in range(record.step + 1, last + 1):
            consumed += sorted(per_step[step])
    assert consumed == list(range(batch * steps))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, pipeline_folder, image_folder):
    def finish(steps: int) -> RunDir:
        run = new_run(
            tmp_path_factory.mktemp("runs") / f"calm-{steps}", pipeline_folder, image_folder, steps=steps, **SETTINGS
        )
        ranks = start(run)
        assert ranks.wait() == [0, 0], ranks.said()[-4000:]
        return run

    return finish


def check_same_end(run: RunDir, calm: RunDir, steps: int) -> None:
    ours, theirs = values(run), values(calm)
    assert ours.keys() == theirs.keys()
    assert [key for key in ours if not np.array_equal(ours[key], theirs[key])] == []
    check_exactly_once(run, 12, steps)


def sweep(run: RunDir, faults: list[tuple], kills: int, seed: int) -> int:
    """Disturb the run at each fault, then `kills` times at random. Answers the newest step."""
    newest = 0
    for call, on, rank, when in faults:
        fault = {"rank": rank, "call": call, "on": on, "count": 1, "when": when, "do": "kill"}
        ranks = start(run, fault)
        codes = ranks.wait()
        assert codes[rank] == -signal.SIGKILL, f"{fault}: {codes}\n{ranks.said()[-3000:]}"
        assert (run.attempts()[-1].path / "fired").exists(), fault
        newest = check_visible(run, newest)
    draw = random.Random(seed)
    for _ in range(kills):
        ranks = start(run)
        time.sleep(draw.uniform(0.5, 5))  # the instant is what the test varies
        ranks.kill(*draw.sample(range(RANKS), draw.randint(1, RANKS)))
        assert -signal.SIGKILL in ranks.wait(), "the run ended before it was disturbed"
        newest = check_visible(run, newest)
    return newest


def disturbed_run_ends_the_same(tmp_path, undisturbed, pipeline_folder, image_folder, steps, faults, kills):
    run = new_run(tmp_path / "run", pipeline_folder, image_folder, steps=steps, **SETTINGS)
    sweep(run, faults, kills, seed=steps)
    while True:
        ranks = start(run)
        if ranks.wait() == [0, 0]:
            break
    check_visible(run, steps)
    check_same_end(run, undisturbed(steps), steps)


def test_killed_at_chosen_points(tmp_path, undisturbed, pipeline_folder, image_folder):
    """A few points of the protocol and of time; the whole sweep is `make test-faults`."""
    few = [
        fault
        for fault in FAULTS
        if fault[:2] in {("write", FRAGMENTS), ("replace", MANIFEST), ("rename", "/tmp-step-")}
    ]
    disturbed_run_ends_the_same(tmp_path, undisturbed, pipeline_folder, image_folder, 60, few, 2)


@pytest.mark.faults
def test_killed_everywhere(tmp_path, undisturbed, pipeline_folder, image_folder):
    """Every named point, before and after, and 100 random instants."""
    disturbed_run_ends_the_same(tmp_path, undisturbed, pipeline_folder, image_folder, 2500, FAULTS, 100)
