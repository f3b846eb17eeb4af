"""The schedulers of a model, which both read the pipeline's own settings: one adds noise, the other draws pictures."""

import inspect
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
    settings = _read_settings(folder)
    rescale = has_zero_terminal_snr(config, settings)
    return DDPMScheduler.from_config(settings, prediction_type=prediction, rescale_betas_zero_snr=rescale)


def load_sampler(folder: Path, noise_scheduler: DDPMScheduler) -> Any:
    """The scheduler that the pipeline in `folder` draws with, once its denoiser was trained with `noise_scheduler`: its
    own, wherever that one can draw what was learnt.

    Where not, DDIM with the same noise schedule. PNDM, which Stable Diffusion 1 comes with, cannot read the clean
    latents (`sample`), and nor can some others; and it cannot begin with pure noise: with zero terminal SNR the first
    timestep that is drawn must be the last one that was trained (`trailing`; Lin et al. 2024, section 3.3).
    """
    learnt, settings = noise_scheduler.config, _read_settings(folder)
    settings["prediction_type"] = learnt.prediction_type
    begins_with_noise = bool(settings.get("rescale_betas_zero_snr"))
    if learnt.rescale_betas_zero_snr and not begins_with_noise:
        return _make_ddim(settings, zero_terminal_snr=True)
    if begins_with_noise and not learnt.rescale_betas_zero_snr:
        settings["rescale_betas_zero_snr"] = False
    sampler_class = _find_class(folder)
    if learnt.prediction_type == "sample" and not _can_step(sampler_class.from_config(settings)):
        return _make_ddim(settings, zero_terminal_snr=learnt.rescale_betas_zero_snr)
    return sampler_class.from_config(settings)


def write_sampler(folder: Path, noise_scheduler: DDPMScheduler) -> None:
    """Let the pipeline in `folder`, an export, draw what its denoiser was trained to with `noise_scheduler`: by a word
    or two in its scheduler's config, all else as it was, or by another scheduler."""
    path, index_path = folder / "scheduler" / "scheduler_config.json", folder / "model_index.json"
    index = json.loads(index_path.read_text())
    before, sampler = _read_settings(folder), load_sampler(folder, noise_scheduler)
    class_name = type(sampler).__name__
    if index["scheduler"][1] != class_name:
        sampler.save_config(path.parent)
        index_path.write_text(json.dumps(index | {"scheduler": ["diffusers", class_name]}, indent=2) + "\n")
        return
    told = [key for key in sampler.config if key in before and not key.startswith("_")]
    words = {key: sampler.config[key] for key in told if sampler.config[key] != before[key]}
    words["prediction_type"] = noise_scheduler.config.prediction_type
    path.write_text(json.dumps(json.loads(path.read_text()) | words, indent=2) + "\n")


def compare_samplers(folder: Path, noise_scheduler: DDPMScheduler) -> tuple[str, dict[str, Any]] | None:
    """How the pipeline in `folder` is given the scheduler of `load_sampler`: the name of its class, and what its
    from_config must be told beside the config of the pipeline's own; None where that one is the same."""
    sampler, own = load_sampler(folder, noise_scheduler), _find_class(folder).from_pretrained(folder / "scheduler")
    plain, parameters = type(sampler).from_config(own.config).config, inspect.signature(type(sampler)).parameters
    words = {key: sampler.config[key] for key in parameters if sampler.config[key] != plain[key]}
    return None if type(sampler) is type(own) and not words else (type(sampler).__name__, words)


def _find_class(folder: Path) -> Any:
    """That of the pipeline's scheduler."""
    class_name = DiffusionPipeline.load_config(folder)["scheduler"][1]
    scheduler_class = getattr(diffusers, class_name, None)
    if scheduler_class is None:
        raise UserError(
            f"{folder}: its scheduler is a {class_name}, which diffusers {diffusers.__version__} does not have; "
            "install a newer one, or name another scheduler of the same noise schedule in its model_index.json"
        )
    return scheduler_class


def _read_settings(folder: Path) -> dict[str, Any]:
    """All settings of the pipeline's scheduler, those that its file leaves out as its class has them: to another class,
    diffusers would take that one's defaults."""
    scheduler_class = _find_class(folder)
    parameters = inspect.signature(scheduler_class).parameters.values()
    defaults = {parameter.name: parameter.default for parameter in parameters}
    return defaults | scheduler_class.load_config(folder, subfolder="scheduler")


def _make_ddim(settings: dict[str, Any], *, zero_terminal_snr: bool) -> DDIMScheduler:
    changes: dict[str, Any] = {"clip_sample": False}  # latents are not confined to [-1, 1]
    if zero_terminal_snr:
        changes |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    return DDIMScheduler.from_config(settings | changes)


def _can_step(sampler: Any) -> bool:
    """Whether this release of diffusers has the formula, found out by a step on nothing."""
    sampler.set_timesteps(10)
    x_t = torch.zeros(1, 1, 1, 1)
    try:
        sampler.step(x_t, sampler.timesteps[0], x_t)
    except (NotImplementedError, ValueError):
        return False
    return True
