"""The loss as the papers have it, written here once more. It shares nothing with `train` but what was drawn."""

from collections.abc import Callable, Mapping

import torch
from diffusers import DDPMScheduler

GAMMA = 5  # min-SNR's, if nothing else is written
C = 0.1  # the least c of the pseudo-Huber loss


def list_alpha_bar(folder: str, zero_terminal_snr: bool) -> torch.Tensor:
    """ᾱ_t of the pipeline's schedule, `scaled_linear`; rescaled by algorithm 1 of Lin et al. 2024. fp32, as it is
    defined there and here: what is left of it is far below fp32's digits."""
    settings = DDPMScheduler.load_config(folder, subfolder="scheduler")
    assert settings["beta_schedule"] == "scaled_linear"
    roots = torch.linspace(settings["beta_start"] ** 0.5, settings["beta_end"] ** 0.5, settings["num_train_timesteps"])
    bar = torch.cumprod(1 - roots**2, dim=0)
    if zero_terminal_snr:
        root = bar.sqrt()
        root = (root - root[-1]) * (root[0] / (root[0] - root[-1]))
        bar = root**2
        betas = 1 - torch.cat([bar[:1], bar[1:] / bar[:-1]])
        bar = torch.cumprod(1 - betas, dim=0)
    return bar


def weigh(weighting: str, prediction: str, snr: torch.Tensor) -> torch.Tensor:
    """Closed forms, each for itself."""
    table = {
        "uniform": {name: torch.ones_like(snr) for name in ("epsilon", "v_prediction", "sample")},
        "min_snr": {
            "epsilon": torch.minimum(torch.ones_like(snr), GAMMA / snr),
            "v_prediction": snr.clamp(max=GAMMA) / (snr + 1),
            "sample": snr.clamp(max=GAMMA),
        },
        "soft_min_snr": {
            "epsilon": GAMMA / (snr + GAMMA),
            "v_prediction": snr * GAMMA / ((snr + GAMMA) * (snr + 1)),
            "sample": snr * GAMMA / (snr + GAMMA),
        },
        "debiased": {
            "epsilon": snr**-0.5,
            "v_prediction": snr**0.5 / (snr + 1),
            "sample": snr**0.5,
        },
    }
    return table[weighting][prediction]


def compute_loss(
    predict: Callable[[torch.Tensor], torch.Tensor],
    alpha_bar: torch.Tensor,
    objective: Mapping[str, object],
    x: torch.Tensor,
    draws: Mapping[str, torch.Tensor],
) -> torch.Tensor:
    """The mean loss of a micro-batch; what follows the UNet's prediction in fp64. `objective`: keys of the config;
    `predict`: of x_t."""
    bar = alpha_bar[draws["timestep"]][:, None, None, None]
    a, s, snr = bar.sqrt(), (1 - bar).sqrt(), bar.double() / (1 - bar.double())
    noise = draws["noise"]
    if "noise_offset" in objective:
        noise = noise + objective["noise_offset"] * draws["offset"].expand_as(noise)
    seen = noise
    if "input_perturbation" in objective:
        seen = noise + objective["input_perturbation"] * draws["perturbation"]
    predicted = predict(a * x + s * seen).double()
    name = objective["prediction"]
    target = {"epsilon": noise, "v_prediction": a * noise - s * x, "sample": x}[name]
    error = predicted - target
    if objective.get("loss") == "huber":
        c = C + (1 - C) / (1 + 1 / snr.sqrt()) ** 2
        cost = 2 * c * ((error**2 + c**2).sqrt() - c)
    else:
        cost = error**2
    return (weigh(objective.get("loss_weighting", "uniform"), name, snr) * cost).mean()
