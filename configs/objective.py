"""What a run learns, as far as it is known without torch: whether the model's scheduler allows it, and in words.

What computes it stands in `train.objective`.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from configs.errors import UserError
from configs.schema import Prediction, RunConfig, TimestepsConfig

# Names of diffusers' schedulers whose noise is no sequence of betas; read as one they would train something else.
_OTHER_NOISE = ("EDM", "FlowMatch")
_OWN_PREDICTION = "as the model's scheduler says"


def check_objective(config: RunConfig, folder: Path) -> str:
    """What the model in `folder` is trained to predict: as the config says, or else its scheduler.

    Raises UserError where the scheduler cannot be read, or as `check_scheduler` does.
    """
    path = folder / "scheduler" / "scheduler_config.json"
    try:
        settings = json.loads(path.read_text())
        if not isinstance(settings, dict):
            raise ValueError("it holds no settings")
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); fetch the model again") from None
    return check_scheduler(config, settings, str(path))


def check_scheduler(config: RunConfig, settings: Mapping[str, Any], place: str) -> str:
    """What is predicted, by a scheduler's settings as diffusers writes them; `place` is where they stand.

    Raises UserError where diffusers cannot add noise by them, where no such prediction is known, or where its loss is
    not defined at some timestep.
    """
    name = str(settings.get("_class_name"))
    if name.startswith(_OTHER_NOISE):
        raise UserError(f"{place}: is a {name}, which adds no noise by betas; this version trains models that do")
    _check_timesteps(config, settings, place)
    prediction = config.prediction or settings.get("prediction_type", "epsilon")
    if prediction not in get_args(Prediction):
        raise UserError(f"{place}: predicts {prediction}; write prediction: {' or '.join(get_args(Prediction))}")
    if config.zero_terminal_snr and prediction == "epsilon":
        raise UserError(
            f"{place}: predicts epsilon, and zero_terminal_snr leaves only noise at the last timestep, of which the "
            "noise tells nothing; write prediction: v_prediction or sample"
        )
    if has_zero_terminal_snr(config, settings) and prediction == "epsilon" and config.loss_weighting != "uniform":
        raise UserError(
            f"{place}: {config.loss_weighting} gives epsilon's loss no weight where the signal-to-noise ratio is 0, "
            "and rescale_betas_zero_snr makes it 0 at the last timestep; write prediction: v_prediction or sample, "
            "or loss_weighting: uniform"
        )
    return str(prediction)


def has_zero_terminal_snr(config: RunConfig, settings: Mapping[str, Any]) -> bool:
    """Whether the run trains down to a signal-to-noise ratio of 0: as the config says, or else the scheduler."""
    if config.zero_terminal_snr is not None:
        return config.zero_terminal_snr
    return bool(settings.get("rescale_betas_zero_snr"))


def _check_timesteps(config: RunConfig, settings: Mapping[str, Any], place: str) -> None:
    """Raise UserError where the scheduler counts its timesteps in two ways, or the config names one beyond its last."""
    count, betas = settings.get("num_train_timesteps", 1000), settings.get("trained_betas")
    if not isinstance(count, int) or count < 1:
        raise UserError(f"{place}: num_train_timesteps is {count!r}, which counts nothing; fetch the model again")
    if isinstance(betas, list) and len(betas) != count:
        raise UserError(
            f"{place}: has {len(betas)} trained_betas and num_train_timesteps: {count}; make them as many as each other"
        )
    for key in ("first", "last"):
        timestep = getattr(config.timesteps, key)
        if timestep is not None and timestep >= count:
            raise UserError(
                f"timesteps.{key}: {timestep} is beyond the last of {count:,} timesteps that {place} has; they count "
                f"from 0, so write at most {count - 1}"
            )
    last = config.timesteps.last
    if config.zero_terminal_snr and last is not None and last < count - 1:
        raise UserError(
            f"timesteps.last: {last} leaves out timestep {count - 1}, which by zero_terminal_snr is the pure noise "
            f"that pictures begin with; leave timesteps.last out ({place} has {count:,} timesteps)"
        )


def is_plainest(config: RunConfig) -> bool:
    """Whether the config says nothing of the objective that is not so by itself."""
    return describe_objective(config) == {"prediction": _OWN_PREDICTION, "loss weighting": "uniform"}


def describe_objective(config: RunConfig) -> dict[str, str]:
    """The objective in words, by what each is of: for the plan and for the card of what was trained. What is as usual
    is left out, but for prediction and loss weighting."""
    words = {"prediction": config.prediction or _OWN_PREDICTION, "loss weighting": _describe_weighting(config)}
    if config.loss == "huber":
        words["loss"] = "pseudo-Huber, by its schedule"
    if noise := _describe_noise(config):
        words["noise"] = noise
    if config.timesteps != TimestepsConfig():
        words["timesteps"] = describe_timesteps(config.timesteps)
    return words


def describe_timesteps(timesteps: TimestepsConfig) -> str:
    """`logit-normal, mean 0, std 1; from 0 to 499; stratified over the batch`."""
    words = ["all equally often"]
    if timesteps.distribution == "logit_normal":
        words = [f"logit-normal, mean {timesteps.mean:g}, std {timesteps.std:g}"]
    if timesteps.first or timesteps.last is not None:
        last = "the scheduler's last" if timesteps.last is None else timesteps.last
        words.append(f"from {timesteps.first} to {last}")
    if timesteps.stratified:
        words.append("stratified over the batch")
    return "; ".join(words)


def _describe_noise(config: RunConfig) -> str:
    words = []
    if config.noise_offset:
        words.append(f"offset {config.noise_offset:g}")
    if config.input_perturbation:
        words.append(f"input perturbation {config.input_perturbation:g}")
    if config.zero_terminal_snr is not None:
        words.append(f"{'zero' if config.zero_terminal_snr else 'no zero'} terminal signal-to-noise ratio")
    return ", ".join(words)


def _describe_weighting(config: RunConfig) -> str:
    names = {"min_snr": "min-SNR", "soft_min_snr": "soft min-SNR"}
    name = names.get(config.loss_weighting, config.loss_weighting)
    return name if config.snr_gamma is None else f"{name}, γ = {config.snr_gamma:g}"
