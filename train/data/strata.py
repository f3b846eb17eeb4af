"""Uniform numbers that cover [0, 1) evenly in each batch, whatever shape cuts it."""

from collections.abc import Iterable
from itertools import groupby
from math import nextafter

import numpy as np

from train.data.permutation import permute_indices
from train.data.randomness import Purpose, draw_uniform


def draw_stratified(seed: int, positions: Iterable[int], batch: int) -> list[float]:
    """A uniform number for the timestep of each of `positions`, in [0, 1): the positions of one batch have one in each
    of `batch` equal strata, like the low-discrepancy sampler of Kingma et al. 2021 ("Variational diffusion models",
    appendix), but each with a number of its own.

    Which stratum is a permutation of the places in the batch, another one for each step, so that neighbours, which may
    be of one bucket, are no neighbours in time.
    """
    numbers: list[float] = []
    for step, group in groupby(positions, key=lambda position: position // batch):
        own = list(group)
        places = np.array([position % batch for position in own], np.uint64)
        strata = permute_indices(places, batch, seed, Purpose.TIMESTEP_STRATUM, (step,)).tolist()
        for position, stratum in zip(own, strata, strict=True):
            number = (stratum + draw_uniform(seed, Purpose.TIMESTEP, position)) / batch
            numbers.append(min(number, nextafter((stratum + 1) / batch, 0)))  # it may round up to the next stratum
    return numbers
