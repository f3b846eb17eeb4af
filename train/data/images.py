"""One image file to one training square."""

import math
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps

from configs.schema import DataConfig
from store.dataset.headers import open_header
from train.data.colours import flatten_colours

LANCZOS = Image.Resampling.LANCZOS
REACH = 3  # pixels to either side that a Lanczos filter makes one pixel of; as many times more as it shrinks


@dataclass(frozen=True)
class Crop:
    """What a training square shows of its image: some models are told, and draw accordingly (SDXL: Podell et al. 2023,
    section 2.2)."""

    original: tuple[int, int]  # height and width of the upright image before it was resized, in pixels
    corner: tuple[int, int]  # top and left of the square, in pixels of the resized image


def load_square(
    file: BinaryIO, data: DataConfig, crop_at: tuple[float, float], flip: bool
) -> tuple[NDArray[np.uint8], Crop]:
    """The image as RGB, uint8, (3, resolution, resolution), and what it shows.

    Of several frames it is the first. EXIF orientation is applied, transparency shown on the background, the short side
    resized to the resolution, a square cut at `crop_at` (x and y as fractions of the free room; 0.5, 0.5 is the
    centre), then mirrored if `flip`. Raises what `open_header` and `flatten_colours` do, and nearly anything, as Pillow
    does, where it does not decode.
    """
    side = data.resolution
    image, original = _read(file, data)
    square, corner = _square(image, side, crop_at)
    pixels = np.asarray(square)
    if flip:
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)), Crop(original, corner)


def describe_crop(width: int, height: int, side: int, crop_at: tuple[float, float]) -> Crop:
    """What `load_square` says that it shows, of an upright image of so many pixels."""
    x, y = (
        _span(length, min(width, height), side, at) if length else None
        for length, at in zip((width, height), crop_at, strict=True)
    )
    return Crop((height, width), (y.start, x.start) if x and y else (0, 0))  # earlier versions' lists hold no sizes


def scale_pixels(pixels: torch.Tensor) -> torch.Tensor:
    """uint8 → fp32 in [-1, 1], of the same bits on every device.

    The divisor is a tensor: by a number, CUDA multiplies with its reciprocal.
    """
    return pixels.float().div_(torch.full((), 127.5, device=pixels.device)).sub_(1.0)


def _read(file: BinaryIO, data: DataConfig) -> tuple[Image.Image, tuple[int, int]]:
    """The upright image as RGB, and its height and width, which the image itself may have fewer of: a JPEG decodes at
    the smallest scale that is still large enough."""
    with open_header(file) as image:
        width, height = image.size
        image.draft("RGB", (data.resolution, data.resolution))
        stored = image.size
        ImageOps.exif_transpose(image, in_place=True)
        original = (height, width) if image.size == stored else (width, height)
        return flatten_colours(image, data.background), original


def _square(image: Image.Image, side: int, crop_at: tuple[float, float]) -> tuple[Image.Image, tuple[int, int]]:
    """The square at `crop_at` of the image whose short side is resized to `side`, and its top and left there.

    Only what it shows is resized: all of a thin image, resized, would be thousands of squares.
    """
    x, y = (_span(length, min(image.size), side, at) for length, at in zip(image.size, crop_at, strict=True))
    shown = image.crop((x.first, y.first, x.last, y.last))
    # Across, then down: given both, Pillow takes either first, depending on the sizes and on its release.
    across = shown.resize((side, shown.height), LANCZOS, (x.begin, 0, x.end, shown.height))
    square = across.resize((side, side), LANCZOS, (0, y.begin, side, y.end))
    return square, (y.start, x.start)


class _Span(NamedTuple):
    """One direction of a square, in pixels."""

    start: int  # of the square in the resized image
    first: int  # of the image's own pixels that the square is made of
    last: int  # the one after the last of them
    begin: float  # of the square among them
    end: float


def _span(length: int, shortest: int, side: int, crop_at: float) -> _Span:
    """Of `length` pixels, whose image is resized so that `shortest` becomes `side`."""
    resized = max(side, round(length * (side / shortest)))
    start = int(crop_at * (resized - side + 1))
    begin, end = start * length / resized, (start + side) * length / resized
    reach = math.ceil(REACH * max(1.0, length / resized))
    first, last = max(0, math.floor(begin) - reach), min(length, math.ceil(end) + reach)
    return _Span(start, first, last, begin - first, end - first)
