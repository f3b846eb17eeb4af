"""How much the squared error of a sample counts at its timestep.

Each takes SNR(t) = α_t² / σ_t² for t = 0 … T − 1, fp64, what is predicted, and γ; and returns a weight per timestep, or
None where all count the same.
"""

import torch


def weight_uniformly(snr: torch.Tensor, prediction: str, gamma: float) -> None:
    """L_simple (Ho et al. 2020, eq. 14) for epsilon, and the same for the other predictions."""


def weight_by_min_snr(snr: torch.Tensor, prediction: str, gamma: float) -> torch.Tensor:
    """min(SNR, γ) for x_0's squared error (Hang et al. 2023, section 3.4); for the others, what makes it the same loss
    (section 4.2), since ‖ε − ε̂‖² = SNR ‖x_0 − x̂_0‖² and ‖v − v̂‖² = (SNR + 1) ‖x_0 − x̂_0‖².

    Not a number for ε where SNR(t) = 0: there x_t is ε and tells nothing of x_0.
    """
    times_error_of_x_0 = {"sample": torch.ones_like(snr), "epsilon": snr, "v_prediction": snr + 1}
    return snr.clamp(max=gamma) / times_error_of_x_0[prediction]
