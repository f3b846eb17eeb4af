"""A loss or a gradient that is not finite: skipped by all ranks, counted, told, and never committed."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from store.checkpoint import checkpoints
from store.run.run_dir import RunDir
from tests.engines import FSDP2, SETTINGS
from tests.ranks import start_ranks
from tests.runs import new_run, next_attempt, values
from tests.shell import until

PROGRAM = Path(__file__).parents[1] / "faulty_attempt.py"
BATCH = 12
STEP_3 = 2 * BATCH  # its first position
EVERY = [("zero0", "fp32", False)]
EVERY += [(f"zero{n}", p, offload) for n in (1, 2, 3) for p in ("fp32", "bf16", "fp16") for offload in (False, True)]
EVERY += [(engine, p, offload) for engine in FSDP2 for p in ("fp32", "bf16") for offload in (False, True)]
FEW = [
    ("zero0", "fp32", False),
    ("zero1", "bf16", False),
    ("zero2", "bf16", True),
    ("zero3", "fp16", True),
    ("reshard", "bf16", False),
    ("keep", "fp32", False),
]
CASES = [case if case in FEW else pytest.param(*case, marks=pytest.mark.faults) for case in EVERY]


def train(run: RunDir, fault: dict, **changes) -> tuple[list[int], str]:
    attempt = next_attempt(run, 2, **changes)
    ranks = start_ranks(2, PROGRAM, run.path, attempt.number, json.dumps(fault))
    return ranks.wait(), ranks.said()


def metrics_of(run: RunDir) -> list[dict]:
    """Read as any other program reads JSON, which knows no NaN."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    return [json.loads(line, parse_constant=refuse) for line in run.metrics_path.read_text().splitlines()]


def is_finite(checkpoint: checkpoints.Checkpoint) -> bool:
    reader = checkpoint.open_reader()
    sizes = {(kind, name): size for kind in reader.kinds() for name, size in reader.sizes(kind).items()}
    return all(np.isfinite(reader.read(kind, name, 0, size)).all() for (kind, name), size in sizes.items())


@pytest.mark.parametrize(("engine", "precision", "offload"), CASES)
def test_one_bad_micro_batch_costs_its_step_and_no_more(
    tmp_path, pipeline_folder, image_folder, engine, precision, offload
):
    settings = {**SETTINGS[engine], "precision": precision, "offload": offload, "micro_batch": 3}
    settings["checkpoint"] = {"every_steps": 1, "keep": 2, "mode": "sync"}
    run = new_run(tmp_path / "run", pipeline_folder, image_folder, **settings)
    codes, said = train(run, {"nan_at": [STEP_3 + 4]}, steps=7)
    assert codes == [0, 0], said[-3000:]
    assert "ALARM: step 3 is skipped" in said
    assert "the loss is not finite at positions 27-29" in said, "the micro-batch of three that holds position 28"

    left = checkpoints.list_checkpoints(run)
    assert [checkpoint.step for checkpoint in left] == [6, 7]
    assert all(is_finite(checkpoint) for checkpoint in left)
    manifest = left[-1].read_manifest()
    assert (manifest.optimizer_step, manifest.skipped_steps) == (6, 1)
    rows = metrics_of(run)
    assert [row["optimizer/skipped"] for row in rows] == [0, 0, 1, 1, 1, 1, 1]
    assert rows[2]["loss/train"] is None
    assert rows[2]["optimizer/pre_clip_grad_norm"] is None
    assert all(row["optimizer/pre_clip_grad_norm"] > 0 for row in rows[:2] + rows[3:])

    undone = new_run(tmp_path / "undone" / "run", pipeline_folder, image_folder, **settings)
    codes, said = train(undone, {"undo_step": 3}, steps=7)
    assert codes == [0, 0], said[-3000:]
    wanted = metrics_of(undone)
    assert [row["loss/train"] for row in rows[3:]] == [row["loss/train"] for row in wanted[3:]]
    found, expected = values(run), values(undone)
    assert [key for key in expected if not np.array_equal(found[key], expected[key])] == []


@pytest.mark.parametrize(("engine", "precision"), [("zero0", "fp32"), ("zero2", "fp16"), ("reshard", "bf16")])
def test_twenty_skipped_steps_in_a_row_end_the_run_and_leave_what_was_good(
    tmp_path, pipeline_folder, image_folder, engine, precision
):
    run = new_run(
        tmp_path / "run",
        pipeline_folder,
        image_folder,
        **SETTINGS[engine],
        precision=precision,
        checkpoint={"every_steps": 2, "keep": 2, "mode": "sync"},
        steps=40,
    )
    codes, said = train(run, {"nan_at": list(range(5 * BATCH, 40 * BATCH))})
    assert codes == [1, 1]
    assert "steps 6 to 25 were skipped, 20 in a row" in said
    left = checkpoints.list_checkpoints(run)
    assert [checkpoint.step for checkpoint in left] == [2, 4], "no save while steps are skipped: nothing was gained"
    assert all(is_finite(checkpoint) for checkpoint in left)

    codes, said = train(run, {}, steps=8)
    assert codes == [0, 0], said[-3000:]
    assert "resumed after step 4" in said
    assert checkpoints.list_checkpoints(run)[-1].read_manifest().skipped_steps == 0


def test_what_is_not_finite_is_never_committed(tmp_path, pipeline_folder, image_folder):
    """However it came about: here the average of one rank is made NaN after step 3."""
    checkpoint = {"every_steps": 1, "keep": 1, "mode": "sync"}
    run = new_run(tmp_path / "run", pipeline_folder, image_folder, checkpoint=checkpoint)
    codes, said = train(run, {"spoil_average_after": 3}, steps=6)
    assert codes == [1, 1]
    assert re.search(
        r"ema of \S+ is not finite after step 3, so no checkpoint of it is kept; the newest is step 2", said
    )
    assert "step 6/6" not in said, "it ends there: nothing that comes later could be saved either"
    left = checkpoints.list_checkpoints(run)
    assert [checkpoint.step for checkpoint in left] == [2]
    assert is_finite(left[0])
    assert not list(run.checkpoints_path.glob("tmp-*")), "and it takes no room"


@pytest.mark.parametrize(
    ("precision", "words"),
    [
        ("bf16", "ALARM: step 3 is skipped: its losses are finite and its gradient is not, positions 24-35"),
        ("fp16", "\nstep 3 is skipped: its gradient overflowed fp16 (positions 24-35); the loss scale is "),
    ],
)
def test_a_gradient_that_overflows_is_told_from_a_loss(tmp_path, pipeline_folder, image_folder, precision, words):
    """In fp16 it is how the loss scale is found, and no cause for alarm."""
    run = new_run(tmp_path / "run", pipeline_folder, image_folder, zero=2, precision=precision)
    codes, said = train(run, {"infinite_gradient_at": [STEP_3]}, steps=5)
    assert codes == [0, 0], said[-3000:]
    assert words in said
    assert checkpoints.list_checkpoints(run)[-1].read_manifest().skipped_steps == 1


def test_a_save_in_flight_is_kept_when_skipped_steps_end_the_run(tmp_path, pipeline_folder, image_folder):
    """Twenty skipped steps are faster than the one save, as on a slow disk."""
    settings = {"zero": 2, "precision": "bf16", "checkpoint": {"every_steps": 5, "keep": 2}, "steps": 40}
    run = new_run(tmp_path / "run", pipeline_folder, image_folder, **settings)
    gate = tmp_path / "gate"
    fault = {"rank": 1, "call": "fsync", "on": "fragments", "count": 1, "when": "before", "do": "wait"}
    fault |= {"gate": str(gate), "nan_at": list(range(5 * BATCH, 40 * BATCH))}
    ranks = start_ranks(2, PROGRAM, run.path, next_attempt(run, 2).number, json.dumps(fault))
    until(lambda: "step 25 is skipped" in ranks.said())
    gate.touch()
    assert ranks.wait() == [1, 1]
    said = ranks.said()
    assert "steps 6 to 25 were skipped, 20 in a row" in said
    assert said.index("step 25 is skipped") < said.index("saved step 5")
    assert [checkpoint.step for checkpoint in checkpoints.list_checkpoints(run)] == [5]
