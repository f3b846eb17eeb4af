"""What is learnt: prediction × noise × timesteps × loss × its weighting. A new choice is a function and a line here."""

from collections.abc import Callable
from functools import partial

import torch
from diffusers import DDPMScheduler

from configs.errors import UserError
from configs.schema import RunConfig
from train.objective.errors import Measure, measure_by_huber, square_errors
from train.objective.loss import Objective, Target
from train.objective.prediction import target_epsilon, target_sample, target_velocity
from train.objective.timesteps import pick_logit_normally, pick_uniformly
from train.objective.weighting import weight_by_min_snr, weight_by_soft_min_snr, weight_debiased, weight_uniformly

PREDICTIONS: dict[str, Target] = {
    "epsilon": target_epsilon,
    "v_prediction": target_velocity,
    "sample": target_sample,
}
WEIGHTINGS = {
    "uniform": weight_uniformly,
    "min_snr": weight_by_min_snr,
    "soft_min_snr": weight_by_soft_min_snr,
    "debiased": weight_debiased,
}
LOSSES: dict[str, Measure] = {
    "mse": square_errors,
    "huber": measure_by_huber,
}


def make_objective(
    config: RunConfig, noise_scheduler: DDPMScheduler, dtype: torch.dtype, device: torch.device
) -> Objective:
    """The objective of `config`, for latents on `device`; what is predicted, `noise_scheduler` says.

    Raises UserError where the weighting has no weight at a timestep.
    """
    prediction = noise_scheduler.config.prediction_type
    alpha_bar = noise_scheduler.alphas_cumprod.double()  # in fp32, 1 − ᾱ_t loses digits where there is little noise
    snr = alpha_bar / (1 - alpha_bar)
    weights = _weigh_timesteps(config, snr, prediction)
    return Objective(
        noise_scheduler=noise_scheduler,
        target=PREDICTIONS[prediction],
        timestep=_choose_timesteps(config, len(snr)),
        noise_offset=config.noise_offset,
        input_perturbation=config.input_perturbation,
        measure=LOSSES[config.loss],
        snr=snr.float().to(device),
        weights=None if weights is None else weights.float().to(device),
        dtype=dtype,
    )


def _choose_timesteps(config: RunConfig, count: int) -> Callable[[float], int]:
    """How a timestep follows from a uniform number, where the scheduler has `count`."""
    timesteps = config.timesteps
    bounds = {"first": timesteps.first, "last": count - 1 if timesteps.last is None else timesteps.last}
    if timesteps.distribution == "logit_normal":
        return partial(pick_logit_normally, **bounds, mean=timesteps.mean, std=timesteps.std)
    return partial(pick_uniformly, **bounds)


def _weigh_timesteps(config: RunConfig, snr: torch.Tensor, prediction: str) -> torch.Tensor | None:
    """w_t, fp64, or None for 1 at every timestep. Raises UserError where it is not finite at one."""
    weigh = WEIGHTINGS[config.loss_weighting]
    weights = weigh(snr, prediction, config.snr_gamma)
    if weights is None or weights.isfinite().all():
        return weights
    unweighted = (~weights.isfinite()).nonzero().flatten().tolist()[-1]
    others = {name: weigh(snr, name, config.snr_gamma) for name in PREDICTIONS}
    weighed = [name for name, other in others.items() if other is not None and other.isfinite().all()]
    cure = f"prediction: {' or '.join(weighed)}, or " if weighed else ""
    raise UserError(
        f"loss_weighting: {config.loss_weighting} has no weight for prediction: {prediction} at timestep {unweighted}, "
        f"where the signal-to-noise ratio is {snr[unweighted]:g}; write {cure}loss_weighting: uniform"
    )
