"""What the denoiser learns to predict of x_t = α_t x_0 + σ_t ε, and so the target of its loss.

Each takes the noise scheduler, clean latents x_0 and noise ε of shape (m, C, h, w), and timesteps t of shape (m,), and
returns a target in the shape of x_0.
"""

from diffusers import DDPMScheduler
from torch import Tensor


def target_epsilon(noise_scheduler: DDPMScheduler, x_0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """ε (Ho et al. 2020, eq. 14)."""
    return noise


def target_velocity(noise_scheduler: DDPMScheduler, x_0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """v = α_t ε − σ_t x_0 (Salimans & Ho 2022, appendix D)."""
    return noise_scheduler.get_velocity(x_0, noise, t)


def target_sample(noise_scheduler: DDPMScheduler, x_0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """x_0 (Ho et al. 2020, section 3.2; Salimans & Ho 2022, section 4)."""
    return x_0
