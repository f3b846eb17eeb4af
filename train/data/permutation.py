"""The order of an epoch: a keyed bijection of 0 … n−1, computed per position in O(1) memory.

The swap-or-not shuffle (Hoang, Morris, Rogaway: "An Enciphering Scheme Based on a Card Shuffle", CRYPTO 2012): in each
round, x and its partner k − x (mod n) trade places if a keyed bit of the larger of the two says so. Being its own
inverse, each round is a bijection for any n, with no rejection and no table.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from train.data.randomness import Purpose, make_generator

_MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_MASK = 2**64 - 1
_FEW = 32  # below so many positions NumPy's calls cost more than Python's arithmetic


def permute_indices(
    index: NDArray[np.uint64], n: int, seed: int, purpose: Purpose, turn: tuple[int, ...]
) -> NDArray[np.uint64]:
    """What stands at places `index` (each < n) of one permutation, in the same shape. `turn` tells it from the others
    of its purpose: the epoch, or a bucket's pass and the bucket."""
    keys = _round_keys(n, seed, purpose, turn)
    if index.size < _FEW:
        pairs = keys.tolist()
        moved = [_permute_one(place, n, pairs) for place in index.ravel().tolist()]
        return np.array(moved, np.uint64).reshape(index.shape)
    x = index.astype(np.uint64)
    for shift, bits in keys:
        partner = np.where(x <= shift, shift - x, shift + np.uint64(n) - x)
        x = np.where(_bit(np.maximum(x, partner) ^ bits), partner, x)
    return x


@lru_cache(maxsize=256)  # neighbours in the stream share them; about 3 KiB each
def _round_keys(n: int, seed: int, purpose: Purpose, turn: tuple[int, ...]) -> NDArray[np.uint64]:
    """Shape (rounds, 2): the partner shift (< n) and the key of the bit. 6·log2(n) rounds mix well (section 3)."""
    rounds = 6 * max(n - 1, 1).bit_length() + 12
    raw = make_generator(seed, purpose, *turn).bit_generator.random_raw(2 * rounds).reshape(rounds, 2)
    raw[:, 0] %= np.uint64(n)
    raw.flags.writeable = False
    return raw


def _bit(x: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """The top bit of SplitMix64's finalizer (Steele, Lea, Flood, OOPSLA 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(_MULTIPLIERS[0])
    x = (x ^ (x >> np.uint64(27))) * np.uint64(_MULTIPLIERS[1])
    return (x >> np.uint64(63)).astype(bool)


def _permute_one(x: int, n: int, keys: list[list[int]]) -> int:
    """`permute_indices` of one place, in plain integers."""
    for shift, bits in keys:
        partner = shift - x if x <= shift else shift + n - x
        mixed = max(x, partner) ^ bits
        mixed = ((mixed ^ (mixed >> 30)) * _MULTIPLIERS[0]) & _MASK
        mixed = ((mixed ^ (mixed >> 27)) * _MULTIPLIERS[1]) & _MASK
        if mixed >> 63:
            x = partner
    return x
