"""The pixels of an image, by the quickest decoder that has the same ones as Pillow."""

import io
import threading
from typing import BinaryIO

import kornia_rs.io
from PIL import Image

from store.dataset.headers import read_orientation

_PLAIN_MODES = {"RGB", "RGBA"}
_MOST_BYTES = 2**26  # of pixels: file, decoded rows and image are held at one time, and Pillow holds the last alone
_MOST_OVERHEAD = 2**20  # bytes of a file beside its pixels
# What may lie behind the first pixels without a say in what is seen, or in whether Pillow takes the file
_HARMLESS = {b"IDAT", b"IEND", b"tEXt", b"tIME"}


def load_pixels(image: Image.Image, file: BinaryIO) -> Image.Image:
    """`image`, of which `open_header` read the header from `file`, with its pixels. Raises nearly anything, as Pillow
    does, where they do not decode.

    A PNG of RGB or RGBA in 8 bits is decoded by kornia-rs, which takes a fifteenth to a half of Pillow's time. It does
    so under the interpreter's lock: where threads decode side by side, Pillow is quicker. It does not look at the
    checksum of all pixels (Adler-32), while Pillow does not look at those of their parts (CRC-32).
    """
    pixels = _decode_plain_png(image, file) if threading.current_thread() is threading.main_thread() else None
    if pixels is not None:
        return pixels
    image.load()
    return image


def _decode_plain_png(image: Image.Image, file: BinaryIO) -> Image.Image | None:
    """None where it is no plain PNG, or damaged: Pillow says then what is wrong with it."""
    if image.format != "PNG" or image.mode not in _PLAIN_MODES or "transparency" in image.info:
        return None
    size = image.height * image.width * len(image.mode)
    if size > _MOST_BYTES or getattr(image, "is_animated", False) or read_orientation(image) != 1:
        return None
    if file.seek(0, io.SEEK_END) > size + size // 64 + _MOST_OVERHEAD:
        return None
    file.seek(0)
    content = file.read()
    if not _list_trailing_kinds(content) <= _HARMLESS:
        return None
    try:
        pixels = kornia_rs.io.decode_image_png_u8(content, (image.height, image.width), image.mode.lower())
    except Exception as error:
        if type(error) is not Exception:  # what it raises of a file: 16 bits, a wrong checksum, half of it
            raise
        return None
    return Image.fromarray(pixels)


def _list_trailing_kinds(png: bytes) -> set[bytes]:
    """The kinds of chunks from the first of its pixels on, and none (b"") for one that is cut off. A chunk is a length,
    a kind, so many bytes and a checksum."""
    kinds: set[bytes] = set()
    start = 8  # behind the signature
    while start < len(png) and b"IEND" not in kinds:
        kind, end = png[start + 4 : start + 8], start + 12 + int.from_bytes(png[start : start + 4])
        if kinds or kind == b"IDAT":
            kinds.add(kind if end <= len(png) else b"")
        start = end
    return kinds
