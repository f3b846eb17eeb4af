"""What an error costs, before its sample is weighed.

Each takes prediction and target, (m, C, h, w), and SNR(t) of the samples, (m,), all fp32; and returns the cost of every
element, in their shape.
"""

from collections.abc import Callable

import torch
from torch.nn import functional as F

Measure = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
_LEAST_C = 0.1  # as sd-scripts has it


def square_errors(prediction: torch.Tensor, target: torch.Tensor, snr: torch.Tensor) -> torch.Tensor:
    """e² (Ho et al. 2020, eq. 14)."""
    return F.mse_loss(prediction, target, reduction="none")


def measure_by_huber(prediction: torch.Tensor, target: torch.Tensor, snr: torch.Tensor) -> torch.Tensor:
    """2c (√(e² + c²) − c): e² where e is small beside c, and 2c |e| where it is large (Khrapov et al. 2024, "Improving
    diffusion models's data-corruption resistance using scheduled pseudo-Huber loss").

    c falls from 1, where there is no noise, to C = 0.1, where there is nothing else: C + (1 − C) / (1 + σ_t / α_t)²
    (the schedule `snr` of kohya-ss/sd-scripts, pull request 1228).
    """
    squares = F.mse_loss(prediction, target, reduction="none")
    c = (_LEAST_C + (1 - _LEAST_C) / (1 + snr.rsqrt()) ** 2)[:, None, None, None]
    return 2 * c * squares / ((squares + c**2).sqrt() + c)  # the difference, without losing digits of small errors
