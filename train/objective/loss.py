"""The loss of one micro-batch (Ho et al. 2020): noise is added, the denoiser predicts, its error is weighed.

x_0 latents, ε noise, t timesteps, ᾱ_t the noise schedule's cumulative product, α_t = √ᾱ_t and σ_t = √(1 − ᾱ_t).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DDPMScheduler
from torch.nn import functional as F

from train.objective.errors import Measure, square_errors

Target = Callable[[DDPMScheduler, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
Draws = Mapping[str, torch.Tensor]  # of a micro-batch, as `train.data.stream.Stream` has them


@dataclass(frozen=True)
class Objective:
    """Prediction × noise × timesteps × loss × its weighting. Tables have a row for each timestep, (T,), fp32 on the
    device."""

    noise_scheduler: DDPMScheduler
    target: Target  # of x_0, ε and t: see `train.objective.prediction`
    timestep: Callable[[float], int]  # of a uniform number in [0, 1); needs no device and no weights
    noise_offset: float
    input_perturbation: float
    measure: Measure  # of every element's error: see `train.objective.errors`
    snr: torch.Tensor  # α_t² / σ_t²
    weights: torch.Tensor | None  # w_t; None: 1 at every timestep
    dtype: torch.dtype  # in which the denoiser sees x_t; all else is fp32

    def loss(
        self, denoiser: Callable[..., Any], x_0: torch.Tensor, draws: Draws, condition: Mapping[str, Any]
    ) -> torch.Tensor:
        """Mean over the micro-batch of w_t × the sample's mean loss, fp32, a scalar.

        x_0 is (m, C, h, w), fp32; of `draws` it takes `noise`, `timestep` and, where the objective has them, `offset`
        and `perturbation`. `denoiser(x_t, t, **condition, return_dict=False)` returns a tuple whose first element is
        the prediction, in the shape of x_0.
        """
        t, noise = draws["timestep"], self.offset_noise(draws)
        x_t = self.noise_scheduler.add_noise(x_0, self.perturb_noise(noise, draws), t)  # α_t x_0 + σ_t ε (eq. 4)
        prediction = denoiser(x_t.to(self.dtype), t, **condition, return_dict=False)[0].float()
        target = self.target(self.noise_scheduler, x_0, noise, t)
        if self.weights is None and self.measure is square_errors:
            return F.mse_loss(prediction, target)
        losses = self.measure(prediction, target, self.snr[t]).flatten(1).mean(1)  # (m,)
        return losses.mean() if self.weights is None else (self.weights[t] * losses).mean()

    def offset_noise(self, draws: Draws) -> torch.Tensor:
        """ε + noise_offset · n, one normal number n per sample and channel (Guttenberg 2023, "Diffusion with offset
        noise"). It is the noise that is learnt."""
        if not self.noise_offset:
            return draws["noise"]
        return draws["noise"] + self.noise_offset * draws["offset"]

    def perturb_noise(self, noise: torch.Tensor, draws: Draws) -> torch.Tensor:
        """ε + γ ξ, of which x_t is made, while ε is learnt (Ning et al. 2023, "Input perturbation reduces exposure bias
        in diffusion models").

        With a noise offset ε has it already, as in diffusers' text-to-image example: the offset is to be predicted, and
        the perturbation stands for errors of earlier predictions, which are not.
        """
        if not self.input_perturbation:
            return noise
        return noise + self.input_perturbation * draws["perturbation"]
