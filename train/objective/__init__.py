"""What is learnt: prediction × timestep distribution × loss weighting. A new choice is a function and a line here."""

from functools import partial

import torch
from diffusers import DDPMScheduler

from configs.errors import UserError
from configs.schema import RunConfig
from train.objective.loss import Objective, Target
from train.objective.prediction import target_epsilon, target_sample, target_velocity
from train.objective.timesteps import pick_uniformly
from train.objective.weighting import weight_by_min_snr, weight_uniformly

PREDICTIONS: dict[str, Target] = {
    "epsilon": target_epsilon,
    "v_prediction": target_velocity,
    "sample": target_sample,
}
WEIGHTINGS = {
    "uniform": weight_uniformly,
    "min_snr": weight_by_min_snr,
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
    weights = WEIGHTINGS[config.loss_weighting](snr, prediction, config.snr_gamma)
    if weights is not None:
        if unweighted := (~torch.isfinite(weights)).nonzero().flatten().tolist():
            raise UserError(
                f"loss_weighting: {config.loss_weighting} has no weight for prediction: {prediction} at timestep "
                f"{unweighted[-1]}, where the signal-to-noise ratio is {snr[unweighted[-1]]:g}; "
                "write prediction: v_prediction or sample, or loss_weighting: uniform"
            )
        weights = weights.float().to(device)
    return Objective(
        noise_scheduler=noise_scheduler,
        target=PREDICTIONS[prediction],
        timestep=partial(pick_uniformly, timesteps=noise_scheduler.config.num_train_timesteps),
        weights=weights,
        dtype=dtype,
    )
