"""Whole attempts on a GPU: every engine trains, saves, resumes the same bits (contract 3, D5), and skips what it must.

Each body runs on a CPU too, with one engine.
"""

import shutil

import numpy as np
import pytest

from store.checkpoint import checkpoints
from tests.engines import SETTINGS
from tests.gpu.devices import on_gpu, train
from tests.runs import new_run, next_attempt, read_losses, values

STEPS, SAVED = 6, 3
ENGINES = {name: chosen | {"precision": "fp32" if name == "zero0" else "bf16"} for name, chosen in SETTINGS.items()}
LORA = {"lora": {"rank": 4, "targets": "all-linear"}, "lr": 1e-2}
VARIANTS = {
    f"{engine} {what}": ENGINES[engine] | changes
    for engine, what, changes in [
        ("zero2", "offload", {"offload": True}),
        ("keep", "offload", {"offload": True}),
        ("zero0", "lora", LORA),
        ("zero2", "lora", LORA),
        ("keep", "lora", LORA),
        ("zero0", "adafactor", {"optimizer": {"name": "adafactor"}}),
        ("zero2", "8bit", {"optimizer": {"name": "adamw_8bit"}}),
        ("keep", "8bit", {"optimizer": {"name": "adamw_8bit"}}),
        ("zero2", "fp16", {"precision": "fp16"}),
    ]
}
CASES = ENGINES | VARIANTS
ON_CPU = [("cpu", name) for name in ("keep", "keep lora")]
EVERYWHERE = [*ON_CPU, *(on_gpu(name) for name in CASES)]


def settings_of(case: str) -> dict:
    """Of a few deterministic steps."""
    if "8bit" in case:
        pytest.importorskip("bitsandbytes")
    return CASES[case] | {"deterministic": True, "steps": STEPS, "batch": 4}


@pytest.mark.parametrize(("device", "case"), EVERYWHERE)
def test_a_resumed_run_has_the_same_bits_and_a_save_beside_the_training_disturbs_nothing(
    tmp_path, pipeline_folder, image_folder, device, case
):
    pictures = {"every_steps": SAVED, "prompts": ["a red circle"], "timesteps": 2}
    often = {"checkpoint": {"every_steps": SAVED, "keep": 2}, "pictures": pictures}
    saved = new_run(tmp_path / "saved", pipeline_folder, image_folder, **settings_of(case), **often)
    train(device, saved, next_attempt(saved, 1))
    whole, curve = values(saved), read_losses(saved)
    assert len(curve) == STEPS
    assert len(list(saved.path.glob("pictures/*/*.png"))) >= 2

    plain = new_run(tmp_path / "plain", pipeline_folder, image_folder, **settings_of(case))
    train(device, plain, next_attempt(plain, 1))
    assert read_losses(plain) == curve
    assert {key: value.tobytes() for key, value in values(plain).items()} == {k: v.tobytes() for k, v in whole.items()}

    newest = checkpoints.list_checkpoints(saved)[-1]
    assert newest.step == STEPS
    shutil.rmtree(newest.path)
    train(device, saved, next_attempt(saved, 1))
    assert read_losses(saved) == curve
    assert {key: value.tobytes() for key, value in values(saved).items()} == {k: v.tobytes() for k, v in whole.items()}


@pytest.mark.parametrize(("device", "case"), EVERYWHERE)
def test_a_step_whose_loss_is_nan_updates_nothing(tmp_path, pipeline_folder, image_folder, device, case):
    run = new_run(tmp_path / "run", pipeline_folder, image_folder, **settings_of(case))
    train(device, run, next_attempt(run, 1), nan_at=[5])  # in step 2
    counters = checkpoints.list_checkpoints(run)[-1].read_manifest()
    assert (counters.optimizer_step, counters.skipped_steps) == (STEPS - 1, 1)
    assert all(np.isfinite(value).all() for value in values(run).values())


@pytest.mark.parametrize("device", ["cpu", on_gpu()])
def test_stable_diffusion_xl_trains_and_draws(tmp_path, pipeline_xl_folder, image_folder, device):
    pictures = {"every_steps": STEPS, "prompts": ["a red circle"], "timesteps": 2}
    run = new_run(tmp_path / "run", pipeline_xl_folder, image_folder, **settings_of("keep lora"), pictures=pictures)
    train(device, run, next_attempt(run, 1))
    assert len(read_losses(run)) == STEPS
    assert np.isfinite(read_losses(run)).all()
    assert list(run.path.glob("pictures/*/*.png"))


@pytest.mark.parametrize(("device", "case"), [on_gpu(name) for name in ("zero1", "keep", "keep lora")])
def test_compiled_blocks_learn_what_uncompiled_ones_do(tmp_path, pipeline_folder, image_folder, device, case):
    curves = []
    for compiled in (False, True):
        settings = CASES[case] | {"steps": STEPS, "batch": 4, "compile": compiled}
        run = new_run(tmp_path / str(compiled), pipeline_folder, image_folder, **settings)
        train(device, run, next_attempt(run, 1))
        curves.append(read_losses(run))
    assert curves[1] == pytest.approx(curves[0], rel=1e-2)  # bf16, whose roundings fall elsewhere
