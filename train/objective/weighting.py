"""How much the squared error of a sample counts at its timestep.

Each takes SNR(t) = α_t² / σ_t² for t = 0 … T − 1, fp64, what is predicted, and γ; and returns a weight per timestep, or
None where all count the same. One guess of x_0 has these errors, which turn a weight of one into those of the others:
‖ε − ε̂‖² = SNR ‖x_0 − x̂_0‖² and ‖v − v̂‖² = (SNR + 1) ‖x_0 − x̂_0‖² (Salimans & Ho 2022, section 4).

Not finite where a weight is not defined: for ε where SNR(t) = 0, since x_t is ε there and tells nothing of x_0.
"""

import torch


def weight_uniformly(snr: torch.Tensor, prediction: str, gamma: float | None) -> None:
    """L_simple (Ho et al. 2020, eq. 14) for epsilon, and the same for the other predictions."""


def weight_by_min_snr(snr: torch.Tensor, prediction: str, gamma: float | None) -> torch.Tensor:
    """min(SNR, γ) for x_0 (Hang et al. 2023, section 3.4); for the others, what makes it the same loss (section
    4.2)."""
    return _translate(snr.clamp(max=gamma), snr, prediction)


def weight_by_soft_min_snr(snr: torch.Tensor, prediction: str, gamma: float | None) -> torch.Tensor:
    """SNR γ / (SNR + γ) for x_0, in the place of min(SNR, γ), without its corner (Crowson et al. 2024, "HDiT")."""
    assert gamma is not None
    return _translate(1 / (1 / snr + 1 / gamma), snr, prediction)


def weight_debiased(snr: torch.Tensor, prediction: str, gamma: float | None) -> torch.Tensor:
    """1 / √SNR for ε (Yu et al. 2023, "Debias the training of diffusion models"); √SNR for x_0 and
    √SNR / (SNR + 1) for v, the same loss."""
    root = snr.sqrt()
    weights: dict[str, torch.Tensor] = {"epsilon": 1 / root, "sample": root, "v_prediction": 1 / (root + 1 / root)}
    return weights[prediction]


def _translate(weight_of_x_0: torch.Tensor, snr: torch.Tensor, prediction: str) -> torch.Tensor:
    """The weight for the error of what is predicted that makes the same loss."""
    times_error_of_x_0 = {"sample": torch.ones_like(snr), "epsilon": snr, "v_prediction": snr + 1}
    return weight_of_x_0 / times_error_of_x_0[prediction]
