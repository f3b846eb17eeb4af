"""The pixels of an image, by the quickest decoder that has the same ones as Pillow."""

from typing import BinaryIO

import kornia_rs.io
from PIL import Image

_PLAIN_MODES = {"RGB", "RGBA"}
# Where Pillow finds an orientation in a PNG, also behind its pixels
_ORIENTATION_KEYS = (b"eXIf", b"Raw profile type exif", b"XML:com.adobe.xmp")


def load_pixels(image: Image.Image, file: BinaryIO) -> Image.Image:
    """`image`, of which `open_header` read the header from `file`, with its pixels. Raises nearly anything, as Pillow
    does, where they do not decode.

    A plain PNG is decoded by kornia-rs, whose decoder takes a third to a fifteenth of the time of Pillow's.
    """
    pixels = _decode_plain_png(image, file)
    if pixels is not None:
        return pixels
    image.load()
    return image


def _decode_plain_png(image: Image.Image, file: BinaryIO) -> Image.Image | None:
    """None where it is no plain PNG, or damaged: Pillow says then what is wrong with it."""
    if image.format != "PNG" or image.mode not in _PLAIN_MODES or "transparency" in image.info:
        return None
    if getattr(image, "is_animated", False):
        return None
    file.seek(0)
    content = file.read()
    if any(key in content for key in _ORIENTATION_KEYS):
        return None
    try:
        pixels = kornia_rs.io.decode_image_png_u8(content, (image.height, image.width), image.mode.lower())
    except Exception:  # noqa: BLE001  (it raises nothing narrower: 16 bits, a wrong checksum, half a file)
        return None
    return Image.fromarray(pixels)
