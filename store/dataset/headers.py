"""What an image file is, by its header: the same answer where samples are listed and where they are decoded."""

import warnings
from typing import BinaryIO

from PIL import ExifTags, Image, UnidentifiedImageError

_ON_ITS_SIDE = {5, 6, 7, 8}  # EXIF orientations that swap width and height

warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # such an image is refused below


def open_header(file: BinaryIO) -> Image.Image:
    """The image in `file`, its pixels not yet decoded.

    Raises ValueError in one sentence for what cannot be trained on, OSError where the file cannot be read, and nearly
    anything, as Pillow does, for a header that is damaged.
    """
    try:
        image = Image.open(file)
    except UnidentifiedImageError:  # Pillow's sentence names the open file, not its path
        raise ValueError("it is no image, or of a format that Pillow does not know") from None
    except Image.DecompressionBombError:
        raise _too_large() from None
    if image.width * image.height > _most_pixels():
        raise _too_large()
    if image.format == "EPS":  # Pillow would run Ghostscript on it, whatever the file is called
        raise ValueError("it is PostScript, which is a program and no picture; save it as PNG")
    return image


def read_upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height of `image`, of which only the header was read, once its EXIF orientation is applied."""
    if image.format == "TIFF" or read_orientation(image) not in _ON_ITS_SIDE:
        return image.size  # Pillow tells the upright size of a TIFF itself
    return image.height, image.width


def read_orientation(image: Image.Image) -> object:
    """EXIF's, as the header of `image` tells it, which keeps the answer; 1 is upright. What stands behind the pixels
    does not count."""
    exif = Image.Image.getexif(image)  # PNG's own would decode the pixels, to look behind them
    return exif.get(ExifTags.Base.Orientation, 1)


def _most_pixels() -> int:
    """As many as Pillow takes for safe: a small file may hold any number of them, and memory is given by the pixel."""
    assert Image.MAX_IMAGE_PIXELS is not None, "nothing here takes Pillow's limit away"
    return Image.MAX_IMAGE_PIXELS


def _too_large() -> ValueError:
    return ValueError(f"it has more than {_most_pixels():,} pixels, which are not safe to decode; make it smaller")
