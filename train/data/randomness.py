"""Contract 2: everything random is a pure function of (run seed, purpose, position).

NumPy's Philox-4x64 (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011) is keyed with the 64-bit
seed and the purpose; the position is the top word of its 256-bit counter, and which of several draws it is the next
one, so no two positions ever share a draw.
"""

import threading
from collections.abc import Sequence
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray


class Purpose(IntEnum):
    """What a draw is for. A number, once given, keeps its meaning: changing it changes every run."""

    ORDER = 0
    CROP = 1
    FLIP = 2
    CAPTION = 3
    POSTERIOR = 4
    NOISE = 5
    TIMESTEP = 6
    CAPTION_CHOICE = 7
    TAG_SHUFFLE = 8
    TAG_DROPOUT = 9
    GRAIN_ORDER = 10
    BUCKET_ORDER = 11
    CROP_CHOICE = 12
    SIZE_DROPOUT = 13
    NOISE_OFFSET = 14
    INPUT_PERTURBATION = 15
    TIMESTEP_STRATUM = 16
    ADAPTER = 20


def make_generator(seed: int, purpose: Purpose, position: int, part: int = 0) -> np.random.Generator:
    """The generator of one draw; `position` is a place in the stream (for an order: the epoch, or a bucket's pass),
    `part` one of several draws for it."""
    philox = np.random.Philox(key=np.array([seed, purpose], np.uint64), counter=[0, 0, part, position])
    return np.random.Generator(philox)


def draw_uniform(seed: int, purpose: Purpose, position: int) -> float:
    """One number in [0, 1)."""
    return float(_LOCAL.turn_to(seed, purpose, position).random())


def draw_normals(seed: int, purpose: Purpose, positions: Sequence[int], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Standard normal values of each position, (positions, *shape), fp32."""
    values = np.empty((len(positions), *shape), np.float32)
    for row, position in zip(values, positions, strict=True):
        _LOCAL.turn_to(seed, purpose, position).standard_normal(dtype=np.float32, out=row)
    return values


class _Local(threading.local):
    """One generator for each thread, set to another draw each time: a new one asks the system for a seed first."""

    def __init__(self) -> None:
        self.philox = np.random.Philox()
        self.generator = np.random.Generator(self.philox)
        self.key, self.counter = np.zeros(2, np.uint64), np.zeros(4, np.uint64)

    def turn_to(self, seed: int, purpose: Purpose, position: int) -> np.random.Generator:
        """As `make_generator`, good until it is called again."""
        self.key[:] = seed, purpose
        self.counter[3] = position
        self.philox.state = {
            "bit_generator": "Philox",
            "state": {"counter": self.counter, "key": self.key},
            "buffer": np.zeros(4, np.uint64),
            "buffer_pos": 4,  # nothing is left in it
            "has_uint32": 0,
            "uinteger": 0,
        }
        return self.generator


_LOCAL = _Local()
