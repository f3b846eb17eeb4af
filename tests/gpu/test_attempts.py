"""Whole attempts on a GPU: every engine trains, saves, resumes the same bits (contract 3, D5), and skips what it must.

Each body runs on a CPU too, with one engine.
"""

import json
import shutil

import numpy as np
import pytest

from store.checkpoint import checkpoints
from tests.engines import SETTINGS
from tests.gpu.devices import on_gpu, train
from tests.runs import new_run, next_attempt, values

STEPS, SAVED = 6, 3
CASES = [(name, "fp32" if name == "zero0" else "bf16") for name in SETTINGS]
EVERYWHERE = [("cpu", "keep", "bf16"), *(on_gpu(*case) for case in CASES)]


def settings_of(engine: str, precision: str) -> dict:
    return SETTINGS[engine] | {"precision": precision, "deterministic": True, "steps": STEPS, "batch": 4}


def losses(run) -> list[float]:
    return [json.loads(line)["loss/train"] for line in run.metrics_path.read_text().splitlines()]


@pytest.mark.parametrize(("device", "engine", "precision"), EVERYWHERE)
def test_a_resumed_run_has_the_same_bits_and_a_save_beside_the_training_disturbs_nothing(
    tmp_path, pipeline_folder, image_folder, device, engine, precision
):
    pictures = {"every_steps": SAVED, "prompts": ["a red circle"], "timesteps": 2}
    often = {"checkpoint": {"every_steps": SAVED, "keep": 2}, "pictures": pictures}
    saved = new_run(tmp_path / "saved", pipeline_folder, image_folder, **settings_of(engine, precision), **often)
    train(device, saved, next_attempt(saved, 1))
    whole, curve = values(saved), losses(saved)
    assert len(curve) == STEPS
    assert len(list(saved.path.glob("pictures/*/*.png"))) >= 2

    plain = new_run(tmp_path / "plain", pipeline_folder, image_folder, **settings_of(engine, precision))
    train(device, plain, next_attempt(plain, 1))
    assert losses(plain) == curve
    assert {key: value.tobytes() for key, value in values(plain).items()} == {k: v.tobytes() for k, v in whole.items()}

    newest = checkpoints.list_checkpoints(saved)[-1]
    assert newest.step == STEPS
    shutil.rmtree(newest.path)
    train(device, saved, next_attempt(saved, 1))
    assert losses(saved) == curve
    assert {key: value.tobytes() for key, value in values(saved).items()} == {k: v.tobytes() for k, v in whole.items()}


@pytest.mark.parametrize(("device", "engine", "precision"), EVERYWHERE)
def test_a_step_whose_loss_is_nan_updates_nothing(tmp_path, pipeline_folder, image_folder, device, engine, precision):
    run = new_run(tmp_path / "run", pipeline_folder, image_folder, **settings_of(engine, precision))
    train(device, run, next_attempt(run, 1), nan_at=[5])  # in step 2
    counters = checkpoints.list_checkpoints(run)[-1].read_manifest()
    assert (counters.optimizer_step, counters.skipped_steps) == (STEPS - 1, 1)
    assert all(np.isfinite(value).all() for value in values(run).values())
