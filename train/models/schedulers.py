"""The schedulers of a model, which both read the pipeline's own settings: one adds noise, the other draws pictures."""

import json
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DiffusionPipeline

from configs.errors import UserError
from configs.objective import check_objective, has_zero_terminal_snr
from configs.schema import RunConfig


def load_noise_scheduler(config: RunConfig, folder: Path) -> DDPMScheduler:
    """What adds noise in training: the noise schedule of the pipeline in `folder`, as `config` has it.

    Of its own config, `prediction_type` says what the denoiser predicts, and `rescale_betas_zero_snr` whether the last
    timestep is pure noise (Lin et al. 2024, algorithm 1). Raises UserError where training has no use for it.
    """
    prediction = check_objective(config, folder)
    own = _load_own(folder, prediction_type=prediction)
    zero_terminal_snr = has_zero_terminal_snr(config, own.config)
    return DDPMScheduler.from_config(_list_settings(own), rescale_betas_zero_snr=zero_terminal_snr)


def load_sampler(folder: Path, noise_scheduler: DDPMScheduler) -> Any:
    """The scheduler that the pipeline in `folder` draws with, once its denoiser was trained with `noise_scheduler`: its
    own, wherever that one can draw what was learnt.

    Where not, DDIM with the same noise schedule. PNDM, which Stable Diffusion 1 comes with, cannot read the clean
    latents (`sample`), and nor can some others; and it cannot begin with pure noise: with zero terminal SNR the first
    timestep that is drawn must be the last one that was trained (`trailing`; Lin et al. 2024, section 3.3).
    """
    learnt = noise_scheduler.config
    own = _load_own(folder, prediction_type=learnt.prediction_type)
    is_rescaled = bool(own.config.get("rescale_betas_zero_snr"))
    if learnt.rescale_betas_zero_snr and not is_rescaled:
        return _make_ddim(own, rescale_betas_zero_snr=True, timestep_spacing="trailing")
    if learnt.prediction_type == "sample" and not _can_step(type(own).from_config(own.config)):
        spacing = {"timestep_spacing": "trailing"} if is_rescaled else {}
        return _make_ddim(own, **spacing)
    if is_rescaled and not learnt.rescale_betas_zero_snr:
        return type(own).from_config(own.config, rescale_betas_zero_snr=False)
    return own


def write_sampler(folder: Path, noise_scheduler: DDPMScheduler) -> None:
    """Let the pipeline in `folder`, an export, draw what its denoiser was trained to with `noise_scheduler`: by a word
    or two in its scheduler's config, all else as it was, or by another scheduler."""
    path, index_path = folder / "scheduler" / "scheduler_config.json", folder / "model_index.json"
    index = json.loads(index_path.read_text())
    sampler = load_sampler(folder, noise_scheduler)
    class_name = type(sampler).__name__
    if index["scheduler"][1] != class_name:
        sampler.save_config(path.parent)
        index_path.write_text(json.dumps(index | {"scheduler": ["diffusers", class_name]}, indent=2) + "\n")
        return
    before, after = _list_settings(_load_own(folder)), _list_settings(sampler)
    words = {key: value for key, value in after.items() if value != before[key] or key == "prediction_type"}
    path.write_text(json.dumps(json.loads(path.read_text()) | words, indent=2) + "\n")


def _load_own(folder: Path, **changes: object) -> Any:
    """The scheduler of the pipeline in `folder`, told `changes` of its settings."""
    class_name = DiffusionPipeline.load_config(folder)["scheduler"][1]
    scheduler_class = getattr(diffusers, class_name, None)
    if scheduler_class is None:
        raise UserError(
            f"{folder}: its scheduler is a {class_name}, which diffusers {diffusers.__version__} does not have; "
            "install a newer one, or name another scheduler of the same noise schedule in its model_index.json"
        )
    return scheduler_class.from_pretrained(folder, subfolder="scheduler", **changes)


def _list_settings(scheduler: Any) -> dict[str, Any]:
    """All its settings for another class: left to itself, diffusers takes that one's defaults for what the file leaves
    out."""
    return {key: value for key, value in scheduler.config.items() if key != "_use_default_values"}


def _make_ddim(sampler: Any, **changes: object) -> DDIMScheduler:
    clip_sample = False  # latents are not confined to [-1, 1]
    return DDIMScheduler.from_config(_list_settings(sampler), clip_sample=clip_sample, **changes)


def _can_step(sampler: Any) -> bool:
    """Whether this release of diffusers has the formula, found out by a step on nothing."""
    sampler.set_timesteps(10)
    x_t = torch.zeros(1, 1, 1, 1)
    try:
        sampler.step(x_t, sampler.timesteps[0], x_t)
    except (NotImplementedError, ValueError):
        return False
    return True
