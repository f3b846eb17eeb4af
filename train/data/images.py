"""One image file to what training sees of it."""

import math
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from configs.schema import DataConfig
from configs.solve.buckets import CropSize

ORIENTATION = ExifTags.Base.Orientation  # from 5 on the file holds the image on its side
LANCZOS = Image.Resampling.LANCZOS
REACH = 3  # pixels to either side that a Lanczos filter makes one pixel of; as many times more as it shrinks
WIDEST = 65535  # the white of 16 bits
TO_8_BITS = [round(value * 255 / WIDEST) for value in range(WIDEST + 1)]


@dataclass(frozen=True)
class Crop:
    """What a sample shows of its image: some models are told, and draw accordingly (SDXL: Podell et al. 2023,
    section 2.2)."""

    original: tuple[int, int]  # height and width of the upright image before it was resized, in pixels
    corner: tuple[int, int]  # top and left of what is shown, in pixels of the resized image


def load_crop(
    file: BinaryIO, data: DataConfig, size: CropSize, crop_at: tuple[float, float], flip: bool
) -> tuple[NDArray[np.uint8], Crop]:
    """The image as RGB, uint8, (3, height, width) of `size`, and what it shows.

    EXIF orientation is applied, transparency shown on white, the image resized so that it just covers `size`, cut at
    `crop_at` (x and y as fractions of the free room; 0.5, 0.5 is the centre), then mirrored if `flip`. Raises OSError
    where the file cannot be read, and nearly anything, as Pillow does, where it does not decode; ValueError where
    nobody can say which of its numbers is white.
    """
    with _open(file) as opened:
        width, height = opened.size
        turned = opened.getexif().get(ORIENTATION, 1) >= 5
        # A JPEG decodes at the smallest scale that is still large enough.
        opened.draft("RGB", (size.height, size.width) if turned else (size.width, size.height))
        as_stored = opened.size
        upright = ImageOps.exif_transpose(opened)
        original = (height, width) if upright.size == as_stored else (width, height)
        image = _on_white(_in_8_bits(upright))
    shown, corner = _cut(image, size, crop_at)
    pixels = np.asarray(shown)
    if flip:
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)), Crop(original, corner)


def describe_crop(width: int, height: int, size: CropSize, crop_at: tuple[float, float]) -> Crop:
    """What `load_crop` says that it shows, of an upright image of so many pixels."""
    if not width or not height:  # earlier versions' lists hold no sizes
        return Crop((height, width), (0, 0))
    x, y = _span_both(width, height, size, crop_at)
    return Crop((height, width), (y.start, x.start))


def scale_pixels(pixels: torch.Tensor) -> torch.Tensor:
    """uint8 → fp32 in [-1, 1], of the same bits on every device.

    The divisor is a tensor: by a number, CUDA multiplies with its reciprocal.
    """
    return pixels.float().div_(torch.full((), 127.5, device=pixels.device)).sub_(1.0)


def _open(file: BinaryIO) -> Image.Image:
    try:
        return Image.open(file)
    except UnidentifiedImageError:  # Pillow's sentence names the open file, not its path
        raise ValueError("it is no image, or of a format that Pillow does not know") from None


def _in_8_bits(image: Image.Image) -> Image.Image:
    """Grey in 16 bits or in floats of 0 to 1 as grey in 8 bits; Pillow's own conversion turns it white or black."""
    if image.mode == "F":
        values = np.asarray(image)
        _check_range(float(values.min()), float(values.max()), 1)
        return Image.fromarray(np.rint(values * 255).astype(np.uint8))
    if image.mode != "I" and not image.mode.startswith("I;16"):
        return image
    wide = image.convert("I")
    values = np.asarray(wide)
    _check_range(int(values.min()), int(values.max()), WIDEST)
    grey = wide.point(TO_8_BITS, "L")
    transparent = grey.info.pop("transparency", None)
    if transparent is not None:
        grey.putalpha(wide.point([0 if value == transparent else 255 for value in range(WIDEST + 1)], "L"))
    return grey


def _check_range(low: float, high: float, white: int) -> None:
    if not (low >= 0 and high <= white):  # so that nan is refused, too
        raise ValueError(
            f"its values reach from {low:g} to {high:g}, and what is white is known of 0 to {white} only; "
            "save it with 8 bits per channel"
        )


def _on_white(image: Image.Image) -> Image.Image:
    """RGB without transparency, under which a file may hold any colour."""
    if not image.has_transparency_data:
        return image.convert("RGB")
    colour = image.info.get("transparency")
    if image.mode == "RGB" and isinstance(colour, tuple) and max(colour) > 255:  # and Pillow keeps 8 of them
        raise ValueError("it tells its transparent colour in 16 bits; save it with an alpha channel")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def _cut(image: Image.Image, size: CropSize, crop_at: tuple[float, float]) -> tuple[Image.Image, tuple[int, int]]:
    """What lies at `crop_at` of the image that is resized so that it just covers `size`, and its top and left there.

    Only what it shows is resized: all of a thin image, resized, would be thousands of squares.
    """
    x, y = _span_both(image.width, image.height, size, crop_at)
    shown = image.crop((x.first, y.first, x.last, y.last))
    # Across, then down: given both, Pillow takes either first, depending on the sizes and on its release.
    across = shown.resize((size.width, shown.height), LANCZOS, (x.begin, 0, x.end, shown.height))
    cut = across.resize((size.width, size.height), LANCZOS, (0, y.begin, size.width, y.end))
    return cut, (y.start, x.start)


class _Span(NamedTuple):
    """One direction of what is shown, in pixels."""

    start: int  # in the resized image
    first: int  # of the image's own pixels that it is made of
    last: int  # the one after the last of them
    begin: float  # of it among them
    end: float


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
    return _Span(start, first, last, begin - first, end - first)
