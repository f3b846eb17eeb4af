"""Which sample stands at which position of the stream, and to what size it is cut (docs/design.md, contract 2).

Both orders are pure functions of (seed, position): nothing is kept but the buckets' rows.
"""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate, groupby
from math import lcm
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from configs.errors import LockstepError
from configs.schema import RunConfig
from configs.solve.buckets import CropSize, choose_crop_sizes, choose_grain, list_crop_sizes
from store.dataset.index import Index
from train.data.permutation import permute_indices
from train.data.randomness import Purpose


@dataclass(frozen=True, eq=False)
class Bucket:
    """Samples of one source that are cut to one size. One epoch holds `repeats` passes over them."""

    rows: Sequence[int] | NDArray[Any]  # their places in the index
    size: CropSize
    repeats: Fraction = Fraction(1)


class SamplePlace(NamedTuple):
    """What stands at a position: one of a bucket's samples."""

    bucket: Bucket
    number: int

    def row(self, offset: int = 0) -> int:
        """Its place in the index; with an offset, that of one which stands for it, of the same size."""
        rows = self.bucket.rows
        return int(rows[(self.number + offset) % len(rows)])


class Order(Protocol):
    @property
    def buckets(self) -> Sequence[Bucket]:
        """All that positions lead to."""
        ...

    def find_places(self, positions: Iterable[int]) -> list[SamplePlace]:
        """What stands at each of `positions`, which should ascend: neighbours are looked up at once."""
        ...


class PlainOrder:
    """Epoch after epoch of one bucket, each in its own permutation: position p is place p mod n of epoch p // n."""

    def __init__(self, bucket: Bucket, seed: int):
        self.buckets, self.seed = (bucket,), seed

    def find_places(self, positions: Iterable[int]) -> list[SamplePlace]:
        [bucket] = self.buckets
        size = len(bucket.rows)
        found: list[SamplePlace] = []
        for epoch, group in groupby(positions, key=lambda position: position // size):
            places = np.array([position % size for position in group], np.uint64)
            numbers = permute_indices(places, size, self.seed, Purpose.ORDER, (epoch,))
            found += [SamplePlace(bucket, number) for number in numbers.tolist()]
        return found


class GrainOrder:
    """The stream in grains of g positions, each of one bucket.

    Bucket b is an endless stream of passes over its n_b samples, each in a permutation of its own. With N_b = n_b ×
    repeats, it fills ⌊(e+1)·N_b/g⌋ − ⌊e·N_b/g⌋ grains of epoch e, whose grains are ordered by one permutation. Numbers
    are exact, however large. A position costs O(buckets) time.
    """

    def __init__(self, buckets: Sequence[Bucket], grain: int, seed: int):
        self.buckets, self.grain, self.seed = buckets, grain, seed
        denominator = lcm(*(bucket.repeats.denominator for bucket in buckets))
        self._samples = [int(len(bucket.rows) * bucket.repeats * denominator) for bucket in buckets]  # N_b
        self._grain = grain * denominator  # g, in the same unit

    def find_places(self, positions: Iterable[int]) -> list[SamplePlace]:
        found: list[SamplePlace] = []
        for grain, group in groupby(positions, key=lambda position: position // self.grain):
            number, first = self._find_grain(grain)
            bucket = self.buckets[number]
            size = len(bucket.rows)
            places = [first + position % self.grain for position in group]
            for turn, part in groupby(places, key=lambda place: place // size):
                left = np.array([place % size for place in part], np.uint64)
                numbers = permute_indices(left, size, self.seed, Purpose.BUCKET_ORDER, (turn, number))
                found += [SamplePlace(bucket, chosen) for chosen in numbers.tolist()]
        return found

    def _find_grain(self, grain: int) -> tuple[int, int]:
        """The bucket of grain number `grain`, and the place in the bucket's own stream that it begins with."""
        epoch = self._find_epoch(grain)
        before, after = self._count_grains(epoch), self._count_grains(epoch + 1)
        ends = list(accumulate(end - begin for begin, end in zip(before, after, strict=True)))
        place = np.array([grain - sum(before)], np.uint64)
        ordered = int(permute_indices(place, ends[-1], self.seed, Purpose.GRAIN_ORDER, (epoch,))[0])
        number = bisect_right(ends, ordered)
        return number, (after[number] - (ends[number] - ordered)) * self.grain

    def _find_epoch(self, grain: int) -> int:
        """The last epoch that begins at grain number `grain` or before. Rounding takes less than a grain per bucket."""
        total = sum(self._samples)
        earliest = grain * self._grain // total
        latest = (grain + len(self.buckets)) * self._grain // total + 1
        epochs = range(earliest, latest + 1)
        return earliest + bisect_right(epochs, grain, key=lambda epoch: sum(self._count_grains(epoch))) - 1

    def _count_grains(self, epoch: int) -> list[int]:
        """The grains that each bucket has filled when `epoch` begins."""
        return [epoch * samples // self._grain for samples in self._samples]


def make_order(config: RunConfig, index: Index) -> Order:
    """The order of a run's samples; the config of a run that was submitted names its batch."""
    buckets = list_buckets(config, index)
    grain = choose_grain(config.data, config.batch or 1)
    if grain is None and len(buckets) == 1 and buckets[0].repeats == 1:
        return PlainOrder(buckets[0], config.seed)
    return GrainOrder(buckets, grain or 1, config.seed)


def list_buckets(config: RunConfig, index: Index) -> list[Bucket]:
    """Every source and size that has samples.

    Their rows are all that an order keeps: 4 bytes of each sample, and none without aspect-ratio buckets. Raises
    LockstepError where these meet images whose size is not known.
    """
    sizes, buckets, first = list_crop_sizes(config.data), [], 0
    for source, count in zip(config.data.listed_sources, index.source_sizes, strict=True):
        part = slice(first, first + count)
        rows = _sort_rows(sizes, part, index)
        buckets += [Bucket(own, size, source.exact_repeats) for own, size in zip(rows, sizes, strict=True)]
        first += count
    return [bucket for bucket in buckets if len(bucket.rows)]


def _sort_rows(sizes: list[CropSize], part: slice, index: Index) -> Sequence[Sequence[int] | NDArray[Any]]:
    """The rows of one source for each of `sizes`, in ascending order."""
    if len(sizes) == 1:
        return [range(part.start, part.stop)]
    widths, heights = index.widths[part], index.heights[part]
    if not (widths.all() and heights.all()):
        raise LockstepError("an earlier version listed these images and not their sizes, which data.buckets needs")
    chosen = choose_crop_sizes(sizes, widths, heights)
    dtype = np.min_scalar_type(len(index))
    return [(np.flatnonzero(chosen == number) + part.start).astype(dtype) for number in range(len(sizes))]
