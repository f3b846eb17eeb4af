"""Contract 2: everything random is a pure function of (run seed, purpose, position).

NumPy's Philox-4x64 (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011) is keyed with the 64-bit
seed and the purpose; the position is the top word of its 256-bit counter, and which of several draws it is the next
one, so no two positions ever share a draw.
"""

from enum import IntEnum

import numpy as np


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


def make_generator(seed: int, purpose: Purpose, position: int, part: int = 0) -> np.random.Generator:
    """The generator of one draw; `position` is a place in the stream (for an order: the epoch, or a bucket's pass),
    `part` one of several draws for it."""
    philox = np.random.Philox(key=np.array([seed, purpose], np.uint64), counter=[0, 0, part, position])
    return np.random.Generator(philox)


def draw_uniform(seed: int, purpose: Purpose, position: int) -> float:
    """One number in [0, 1)."""
    return float(make_generator(seed, purpose, position).random())


def draw_normal(seed: int, purpose: Purpose, position: int, shape: tuple[int, ...]) -> np.ndarray:
    """Standard normal values, fp32."""
    return make_generator(seed, purpose, position).standard_normal(shape, dtype=np.float32)
