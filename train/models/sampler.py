"""Which scheduler a pipeline draws with: its own, wherever that one can read what the denoiser predicts."""

import json
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DDIMScheduler, DiffusionPipeline


def load_sampler(folder: Path, prediction: str) -> Any:
    """The scheduler of the pipeline in `folder`, told what the denoiser predicts.

    Where diffusers has no formula for that, DDIM with the same noise schedule: PNDM, which Stable Diffusion 1 comes
    with, cannot read the clean latents (`sample`), and nor can some others.
    """
    class_name = DiffusionPipeline.load_config(folder)["scheduler"][1]
    scheduler_class = getattr(diffusers, class_name)
    sampler = scheduler_class.from_pretrained(folder, subfolder="scheduler", prediction_type=prediction)
    if prediction != "sample" or _can_step(scheduler_class.from_config(sampler.config)):
        return sampler
    return DDIMScheduler.from_config(sampler.config, clip_sample=False)  # latents are not confined to [-1, 1]


def _can_step(sampler: Any) -> bool:
    """Whether this release of diffusers has the formula, found out by a step on nothing."""
    sampler.set_timesteps(10)
    x_t = torch.zeros(1, 1, 1, 1)
    try:
        sampler.step(x_t, sampler.timesteps[0], x_t)
    except (NotImplementedError, ValueError):
        return False
    return True


def write_sampler(folder: Path, prediction: str) -> None:
    """Let the pipeline in `folder`, an export, sample with what its denoiser predicts: by one word in its scheduler's
    config, all else as it was, or by another scheduler."""
    path = folder / "scheduler" / "scheduler_config.json"
    if prediction == "sample":
        index = json.loads((folder / "model_index.json").read_text())
        sampler = load_sampler(folder, prediction)
        class_name = type(sampler).__name__
        if index["scheduler"][1] != class_name:
            sampler.save_config(path.parent)
            index["scheduler"] = ["diffusers", class_name]
            (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
            return
    settings = json.loads(path.read_text())
    path.write_text(json.dumps(settings | {"prediction_type": prediction}, indent=2) + "\n")
