"""How the timestep of a sample follows from a uniform number, so that it stays a pure function of the position.

Each is the inverse of a distribution function on [0, 1), laid over the timesteps `first` … `last`: u in [0, 1) → a
timestep. They go to worker processes, and hold no tensors.
"""

import math
from statistics import NormalDist

_STANDARD_NORMAL = NormalDist()


def pick_uniformly(u: float, first: int, last: int) -> int:
    """first + ⌊u n⌋, n = last − first + 1: each equally often (Ho et al. 2020, algorithm 1, which counts from 1)."""
    return first + int(u * (last - first + 1))


def pick_logit_normally(u: float, first: int, last: int, mean: float, std: float) -> int:
    """first + ⌊n sigmoid(mean + std Φ⁻¹(u))⌋ (Esser et al. 2024, section 3.1, whose t goes from 0 to 1)."""
    if u == 0:
        return first  # Φ⁻¹(0) is −∞
    share = _compute_sigmoid(mean + std * _STANDARD_NORMAL.inv_cdf(u))
    return min(first + int(share * (last - first + 1)), last)  # far out the sigmoid rounds to 1


def _compute_sigmoid(x: float) -> float:
    if x >= 0:
        return 1 / (1 + math.exp(-x))
    small = math.exp(x)  # that of −x may be too large for a float
    return small / (1 + small)
