"""The loss of one micro-batch (Ho et al. 2020): noise is added, the denoiser predicts, its error is weighed.

x_0 latents, ε noise, t timesteps, ᾱ_t the noise schedule's cumulative product, α_t = √ᾱ_t and σ_t = √(1 − ᾱ_t).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DDPMScheduler
from torch.nn import functional as F

Target = Callable[[DDPMScheduler, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Objective:
    """Prediction × timestep distribution × loss weighting."""

    noise_scheduler: DDPMScheduler
    target: Target  # of x_0, ε and t: see `train.objective.prediction`
    timestep: Callable[[float], int]  # of a uniform number in [0, 1); needs no device and no weights
    weights: torch.Tensor | None  # w_t, (T,), fp32 on the device; None: 1 at every timestep
    dtype: torch.dtype  # in which the denoiser sees x_t; all else is fp32

    def loss(
        self,
        denoiser: Callable[..., Any],
        x_0: torch.Tensor,
        noise: torch.Tensor,
        t: torch.Tensor,
        condition: Mapping[str, Any],
    ) -> torch.Tensor:
        """Mean over the micro-batch of w_t × the sample's mean squared error, fp32, a scalar.

        x_0 and ε are (m, C, h, w), fp32; t is (m,). `denoiser(x_t, t, **condition, return_dict=False)` returns a tuple
        whose first element is the prediction, in the shape of x_0.
        """
        x_t = self.noise_scheduler.add_noise(x_0, noise, t)  # α_t x_0 + σ_t ε (eq. 4)
        prediction = denoiser(x_t.to(self.dtype), t, **condition, return_dict=False)[0].float()
        target = self.target(self.noise_scheduler, x_0, noise, t)
        if self.weights is None:
            return F.mse_loss(prediction, target)
        errors = F.mse_loss(prediction, target, reduction="none").flatten(1).mean(1)  # (m,)
        return (self.weights[t] * errors).mean()
