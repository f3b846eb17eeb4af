"""A run that trains adapters, through a whole attempt."""

from pathlib import Path

import diffusers
import numpy as np

from store.run.end import End
from store.run.run_dir import RunDir
from tests.ranks import start_ranks
from tests.runs import new_run, next_attempt, values

ATTEMPT = Path(__file__).with_name("faulty_attempt.py")


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
