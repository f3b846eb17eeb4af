"""The denoising objective: noise, target and loss of one micro-batch at its timesteps.

x_0 latents, ε noise, ᾱ_t the schedule's cumulative product, α_t = √ᾱ_t and σ_t = √(1 − ᾱ_t).
"""

from typing import Any

import torch
from diffusers import DDPMScheduler
from torch.nn import functional as F


def add_noise(schedule: DDPMScheduler, x_0: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """x_t = α_t x_0 + σ_t ε (Ho et al. 2020, eq. 4)."""
    return schedule.add_noise(x_0, noise, t)


def target(schedule: DDPMScheduler, x_0: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """What the UNet predicts: ε (Ho et al. 2020, eq. 14) or v = α_t ε − σ_t x_0 (Salimans & Ho 2022, appendix D)."""
    if schedule.config.prediction_type == "epsilon":
        return noise
    return schedule.get_velocity(x_0, noise, t)


def loss(
    unet: Any, schedule: DDPMScheduler, x_0: torch.Tensor, noise: torch.Tensor, t: torch.Tensor, text: torch.Tensor
) -> torch.Tensor:
    """Mean squared error over the micro-batch, fp32, a scalar. The UNet sees `text`'s dtype; the rest stays fp32."""
    x_t = add_noise(schedule, x_0, noise, t)
    prediction = unet(x_t.to(text.dtype), t, text, return_dict=False)[0]
    return F.mse_loss(prediction.float(), target(schedule, x_0, noise, t), reduction="mean")
