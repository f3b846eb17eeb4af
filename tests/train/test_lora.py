"""Runs that train adapters: against a plain loop, and through a whole attempt."""

import json
from pathlib import Path

import diffusers
import numpy as np

from store.run.end import End
from store.run.run_dir import RunDir
from tests.ranks import run_ranks, start_ranks
from tests.runs import new_run, next_attempt, values

PLAIN = Path(__file__).with_name("train_lora_against_plain.py")
ATTEMPT = Path(__file__).with_name("faulty_attempt.py")


def test_ten_steps_equal_a_plain_loop(tmp_path, pipeline_folder, pipeline_2_folder, image_folder) -> None:
    """Losses to 1e-5 relative at every micro-batch, each adapter to 1e-3 in relative norm."""
    lora, dora = {"rank": 4, "alpha": 6}, {"rank": 4, "alpha": 4, "dora": True}
    cases = [[str(pipeline_folder), lora, 2], [str(pipeline_2_folder), lora, 0], [str(pipeline_folder), dora, 1]]
    cases.append([str(pipeline_2_folder), lora, 3])  # last: see test_elastic
    run_ranks(1, PLAIN, image_folder, json.dumps(cases), tmp_path / "answer")
    for case, differences in zip(cases, json.loads((tmp_path / "answer").read_text()), strict=True):
        assert len(differences["losses"]) == 10 * 2, "ten steps of two micro-batches"
        assert [loss for loss in differences["losses"] if not loss <= 1e-5] == [], case
        assert {name: tensor for name, tensor in differences["tensors"].items() if not tensor <= 1e-3} == {}, case


def trained(folder: Path, model: Path, images: Path, ranks: int, **changes: object) -> RunDir:
    run = new_run(folder, model, images, steps=4, micro_batch=3, lr=1e-2, **changes)
    started = start_ranks(ranks, ATTEMPT, run.path, next_attempt(run, ranks).number, "{}")
    assert started.wait() == [0] * ranks, started.said()[-3000:]
    return run


def test_an_attempt_trains_draws_and_exports_adapters(tmp_path, pipeline_folder, image_folder) -> None:
    pictures = {"every_steps": 4, "prompts": ["a red circle"], "timesteps": 2}
    changes = {"lora": {"rank": 4}, "gradient_checkpointing": True, "zero": 3, "pictures": pictures}
    run = trained(tmp_path / "lora", pipeline_folder, image_folder, 2, **changes)
    assert End.read(run.attempt(1).end_path).reason == "finished"
    held = values(run)
    assert {kind for kind, _ in held} == {"weights", "exp_avg", "exp_avg_sq", "ema"}
    assert all(".lora_" in name for _, name in held), "a checkpoint holds the adapters alone"
    trained_b = [value for (kind, name), value in held.items() if kind == "weights" and ".lora_B." in name]
    assert all(np.any(value) for value in trained_b)
    first, last = (run.pictures_path_at(step) / "00-a-red-circle.png" for step in (0, 4))
    assert first.read_bytes() != last.read_bytes(), "pictures are of the adapted UNet"
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(pipeline_folder)
    pipeline.load_lora_weights(run.pipeline_path)
    loaded = dict(pipeline.unet.named_parameters())
    for (kind, name), value in held.items():
        if kind == "ema":
            assert np.array_equal(loaded[name.replace(".default.", ".default_0.")].detach().numpy().ravel(), value)
