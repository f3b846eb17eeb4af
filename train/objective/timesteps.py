"""How the timestep of a sample follows from a uniform number, so that it stays a pure function of the position."""


def pick_uniformly(u: float, timesteps: int) -> int:
    """⌊u T⌋ for u in [0, 1): each of 0 … T − 1 equally often (Ho et al. 2020, algorithm 1, which counts from 1)."""
    return int(u * timesteps)
