"""One image file to one training square."""

import math
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from configs.schema import DataConfig

LANCZOS = Image.Resampling.LANCZOS
REACH = 3  # pixels to either side that a Lanczos filter makes one pixel of; as many times more as it shrinks
WIDEST = 65535  # the white of 16 bits
TO_8_BITS = [round(value * 255 / WIDEST) for value in range(WIDEST + 1)]


def load_square(path: Path, data: DataConfig, crop_at: tuple[float, float], flip: bool) -> np.ndarray:
    """The image as RGB in [-1, 1], fp32, shape (3, resolution, resolution).

    EXIF orientation is applied, transparency shown on white, the short side resized to the resolution, a square cut at
    `crop_at` (fractions of the free room; 0.5, 0.5 is the centre), then mirrored if `flip`. Raises OSError where the
    file cannot be read, and nearly anything, as Pillow does, where it does not decode; ValueError where nobody can say
    which of its numbers is white.
    """
    side = data.resolution
    with Image.open(path) as file:
        file.draft("RGB", (side, side))  # a JPEG decodes at the smallest scale that is still large enough
        image = _on_white(_in_8_bits(ImageOps.exif_transpose(file)))
    pixels = np.asarray(_square(image, side, crop_at), np.float32) / 127.5 - 1.0
    if flip:
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


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


def _square(image: Image.Image, side: int, crop_at: tuple[float, float]) -> Image.Image:
    """The square at `crop_at` of the image whose short side is resized to `side`. Only what it shows is resized: all of
    a thin image, resized, would be thousands of squares."""
    scale = side / min(image.size)
    (left, right, x), (top, bottom, y) = (
        _span(length, max(side, round(length * scale)), side, at)
        for length, at in zip(image.size, crop_at, strict=True)
    )
    image = image.crop((left, top, right, bottom))
    # Across, then down: given both, Pillow takes either first, depending on the sizes and on its release.
    image = image.resize((side, image.height), LANCZOS, (x[0], 0, x[1], image.height))
    return image.resize((side, side), LANCZOS, (0, y[0], side, y[1]))


def _span(length: int, resized: int, side: int, crop_at: float) -> tuple[int, int, tuple[float, float]]:
    """Of `length` pixels that become `resized`: those that a window of `side` at `crop_at` is made of, the first and
    the one after the last, and where among them the window begins and ends."""
    start = int(crop_at * (resized - side + 1))
    begin, end = start * length / resized, (start + side) * length / resized
    reach = math.ceil(REACH * max(1.0, length / resized))
    first = max(0, math.floor(begin) - reach)
    return first, min(length, math.ceil(end) + reach), (begin - first, end - first)
