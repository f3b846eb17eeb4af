"""Aspect-ratio buckets (docs/design.md, contract 2): their sizes, which one an image belongs to, and how many samples
in a row are of one bucket."""

import math
from bisect import bisect_left
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from configs.schema import DataConfig

if TYPE_CHECKING:
    from numpy.typing import NDArray

LARGEST_GRAIN = 32  # by default: a micro-batch is rarely larger, and a smaller grain mixes the shapes better


class CropSize(NamedTuple):
    """What is cut of an image, in pixels."""

    height: int
    width: int

    @property
    def pixels(self) -> int:
        return self.height * self.width

    def __str__(self) -> str:
        return f"{self.width}×{self.height}"


def list_crop_sizes(data: DataConfig) -> list[CropSize]:
    """The sizes that samples are cut to, from the tallest to the widest; without buckets the square alone.

    For each short side, a multiple of `step`, the long side is the largest one with no more pixels than the square.
    """
    square = CropSize(data.resolution, data.resolution)
    if data.buckets is None:
        return [square]
    tall = []
    for width in range(data.buckets.step, data.buckets.side, data.buckets.step):
        height = data.buckets.side**2 // width // data.buckets.step * data.buckets.step
        if height <= data.buckets.max_ratio * width:
            tall.append(CropSize(height, width))
    wide = [CropSize(size.width, size.height) for size in reversed(tall)]
    return [*tall, square, *wide]


def describe_crop_sizes(data: DataConfig) -> str:
    """For a person: what a pipeline that was trained on them draws well."""
    sizes = list_crop_sizes(data)
    if len(sizes) == 1:
        return f"{data.resolution} px"
    return f"{data.resolution} px, in {len(sizes)} shapes from {sizes[0]} to {sizes[-1]}"


def choose_crop_size(data: DataConfig, width: int, height: int) -> CropSize:
    """The size that an upright image of so many pixels is cut to: the one that cuts off least of it."""
    sizes = list_crop_sizes(data)
    return sizes[bisect_left(_list_limits(sizes), width / height)] if len(sizes) > 1 else sizes[0]


def choose_crop_sizes(sizes: list[CropSize], widths: "NDArray[Any]", heights: "NDArray[Any]") -> "NDArray[Any]":
    """As `choose_crop_size`, for many images: which of `sizes`, as `list_crop_sizes` has them."""
    import numpy as np

    chosen: NDArray[Any] = np.searchsorted(np.array(_list_limits(sizes)), widths / heights)
    return chosen.astype(np.min_scalar_type(len(sizes)))


def _list_limits(sizes: list[CropSize]) -> list[float]:
    """The aspect ratios between each of `sizes` and the next: their geometric means. IEEE 754 rounds divisions and
    square roots on every machine alike."""
    ratios = [size.width / size.height for size in sizes]
    return [math.sqrt(one * other) for one, other in pairwise(ratios)]


def measure_cropped(ratios: Any, widths: "NDArray[Any]", heights: "NDArray[Any]") -> "NDArray[Any]":
    """The share of each image that is cut off where it is cut to these aspect ratios, or all to one."""
    import numpy as np

    stretched = widths / heights / ratios
    share: NDArray[Any] = 1 - np.minimum(stretched, 1 / stretched)
    return share


def choose_grain(data: DataConfig, batch: int) -> int | None:
    """Samples in a row that are of one bucket: by default the largest divisor of the batch up to 32. Never taken from
    the micro-batch, which is another one on another cluster. None without buckets: there all samples are of one size.
    """
    if data.buckets is None:
        return None
    return data.buckets.grain or max(n for n in range(1, min(batch, LARGEST_GRAIN) + 1) if batch % n == 0)
