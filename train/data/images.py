"""One image file to what training sees of it."""

import math
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps

from configs.schema import DataConfig
from configs.solve.buckets import CropSize
from store.dataset.headers import open_header, read_upright_size
from train.data.colours import flatten_colours
from train.data.pixels import load_pixels

LANCZOS = Image.Resampling.LANCZOS
KEPT_BLOCKS = 4  # of memory, up to 16 MiB each, that Pillow uses again for the next image
REACH = 3  # pixels to either side that a Lanczos filter makes one pixel of; as many times more as it shrinks

# Else the kernel hands out and clears its pages for each image anew. (Pillow documents the call, without a type.)
Image.core.set_blocks_max(KEPT_BLOCKS)  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Crop:
    """What a sample shows of its image, in pixels: some models are told, and draw accordingly (Podell et al. 2023,
    section 2.2).

    Of a mirrored sample `left` is what is cut off on the left of the mirrored image: as if it were mirrored first, and
    cropped then, which diffusers' train_text_to_image_sdxl.py does (its pull request 6547).
    """

    original: tuple[int, int]  # height and width of the upright image before it was resized
    corner: tuple[int, int]  # top and left of what is shown, in pixels of the resized image
    target: tuple[int, int]  # height and width of what is shown


NOTHING_TOLD = Crop((0, 0), (0, 0), (0, 0))


def load_crop(
    file: BinaryIO, data: DataConfig, size: CropSize, crop_at: tuple[float, float], flip: bool
) -> tuple[NDArray[np.uint8], Crop]:
    """The image as RGB, uint8, (3, height, width) of `size`, and what it shows.

    Of several frames it is the first. EXIF orientation is applied, transparency shown on the background, the image
    resized so that it just covers `size`, cut at `crop_at` (x and y as fractions of the free room; 0.5, 0.5 is the
    centre), then mirrored if `flip`. Raises what `open_header` and `flatten_colours` do, and nearly anything, as Pillow
    does, where it does not decode.
    """
    image, (height, width) = _read(file, data, size)
    pixels = np.asarray(_cut(image, size, crop_at))
    if flip:
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)), describe_crop(width, height, size, crop_at, flip)


def describe_crop(width: int, height: int, size: CropSize, crop_at: tuple[float, float], flip: bool) -> Crop:
    """What `load_crop` says that it shows, of an upright image of so many pixels: told of its size alone, so that it is
    the same where the pixels come from the cache."""
    if not width or not height:  # earlier versions' lists hold no sizes
        return NOTHING_TOLD
    x, y = _span_both(width, height, size, crop_at)
    left = x.resized - size.width - x.start if flip else x.start
    return Crop((height, width), (y.start, left), (size.height, size.width))


def scale_pixels(pixels: torch.Tensor) -> torch.Tensor:
    """uint8 → fp32 in [-1, 1], of the same bits on every device.

    The divisor is a tensor: by a number, CUDA multiplies with its reciprocal.
    """
    return pixels.float().div_(torch.full((), 127.5, device=pixels.device)).sub_(1.0)


def _read(file: BinaryIO, data: DataConfig, size: CropSize) -> tuple[Image.Image, tuple[int, int]]:
    """The upright image as RGB, and its height and width, which the image itself may have fewer of: a JPEG decodes at
    the smallest scale that is still large enough."""
    with open_header(file) as header:
        width, height = header.size
        turned = read_upright_size(header) != (width, height)
        header.draft("RGB", (size.height, size.width) if turned else (size.width, size.height))
        image = load_pixels(header, file)
        stored = image.size
        ImageOps.exif_transpose(image, in_place=True)
        original = (height, width) if image.size == stored else (width, height)
        return flatten_colours(image, data.background), original


def _cut(image: Image.Image, size: CropSize, crop_at: tuple[float, float]) -> Image.Image:
    """What lies at `crop_at` of the image that is resized so that it just covers `size`.

    Only what it shows is resized: all of a thin image, resized, would be thousands of squares.
    """
    x, y = _span_both(image.width, image.height, size, crop_at)
    if image.size == (size.width, size.height):
        return image  # Pillow would copy it three times
    shown = image.crop((x.first, y.first, x.last, y.last))
    # Across, then down: given both, Pillow takes either first, depending on the sizes and on its release.
    across = shown.resize((size.width, shown.height), LANCZOS, (x.begin, 0, x.end, shown.height))
    return across.resize((size.width, size.height), LANCZOS, (0, y.begin, size.width, y.end))


class _Span(NamedTuple):
    """One direction of what is shown, in pixels."""

    start: int  # in the resized image
    first: int  # of the image's own pixels that it is made of
    last: int  # the one after the last of them
    begin: float  # of it among them
    end: float
    resized: int  # length of all of the image, resized


def _span_both(width: int, height: int, size: CropSize, crop_at: tuple[float, float]) -> tuple[_Span, _Span]:
    """What is shown across and down, of an image of so many pixels."""
    scale = max(size.width / width, size.height / height)
    return _span(width, scale, size.width, crop_at[0]), _span(height, scale, size.height, crop_at[1])


def _span(length: int, scale: float, side: int, crop_at: float) -> _Span:
    """`side` of the `length` pixels, once they are resized by `scale`."""
    resized = max(side, round(length * scale))
    start = int(crop_at * (resized - side + 1))
    begin, end = start * length / resized, (start + side) * length / resized
    reach = math.ceil(REACH * max(1.0, length / resized))
    first, last = max(0, math.floor(begin) - reach), min(length, math.ceil(end) + reach)
    return _Span(start, first, last, begin - first, end - first, resized)
