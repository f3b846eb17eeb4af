"""Which sample stands at which position of the stream."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from train.data.permutation import permute_indices


@dataclass(frozen=True)
class Order:
    """Epoch after epoch of `size` samples, each in its own permutation: position p is place p mod size of epoch
    p // size. A pure function of (seed, position) that costs no memory, whatever the size."""

    size: int
    seed: int

    def samples_at(self, positions: Iterable[int]) -> list[int]:
        """The index (0 … size − 1) of the sample at each of `positions`, which should ascend: those of one epoch are
        looked up at once."""
        indices: list[int] = []
        for epoch, group in groupby(positions, key=lambda position: position // self.size):
            places = np.array([position % self.size for position in group], np.uint64)
            indices += permute_indices(places, self.size, self.seed, epoch).tolist()
        return indices
