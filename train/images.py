"""One image file to one training square."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from configs.schema import Data


def load_square(path: Path, data: Data, crop_at: tuple[float, float], flip: bool) -> np.ndarray:
    """The image as RGB in [-1, 1], fp32, shape (3, resolution, resolution).

    EXIF orientation is applied, the short side resized to the resolution, a square cut at `crop_at` (fractions of the
    free room; 0.5, 0.5 is the centre), then mirrored if `flip`. Raises OSError where the file does not decode.
    """
    side = data.resolution
    with Image.open(path) as file:
        file.draft("RGB", (side, side))  # a JPEG decodes at the smallest scale that is still large enough
        image = ImageOps.exif_transpose(file).convert("RGB")
    scale = side / min(image.size)
    width, height = (max(side, round(length * scale)) for length in image.size)
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    left, top = int(crop_at[0] * (width - side + 1)), int(crop_at[1] * (height - side + 1))
    image = image.crop((left, top, left + side, top + side))
    pixels = np.asarray(image, np.float32) / 127.5 - 1.0
    if flip:
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))
