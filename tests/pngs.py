"""PNG files made by hand, with what Pillow does not write; and what is seen in any file."""

import io
import zlib
from collections import Counter
from collections.abc import Iterable

import kornia_rs.io
import numpy as np
import pytest
from PIL import Image, ImageOps

from store.dataset.headers import open_header, read_upright_size
from train.data.pixels import load_pixels

SIGNATURE = b"\x89PNG\r\n\x1a\n"
COLOUR_TYPES = {"RGB": 2, "RGBA": 6}


def make_chunk(kind: bytes, data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


def make_png(image: Image.Image, scanlines: bytes, bits: int = 8, interlaced: bool = False) -> bytes:
    """A PNG of these lines, each of which begins with the number of its filter."""
    size = image.width.to_bytes(4, "big") + image.height.to_bytes(4, "big")
    header = size + bytes([bits, COLOUR_TYPES[image.mode], 0, 0, interlaced])
    return join_chunks([(b"IHDR", header), (b"IDAT", zlib.compress(scanlines)), (b"IEND", b"")])


def interlace(image: Image.Image) -> bytes:
    """By Adam7: seven passes over the image, each of some columns of some rows."""
    pixels = np.asarray(image)
    starts = [(0, 0), (4, 0), (0, 4), (2, 0), (0, 2), (1, 0), (0, 1)]
    strides = [(8, 8), (8, 8), (4, 8), (4, 4), (2, 4), (2, 2), (1, 2)]
    passes = [pixels[y::down, x::across] for (x, y), (across, down) in zip(starts, strides, strict=True)]
    lines = [b"\0" + row.tobytes() for each in passes for row in each if row.size]
    return make_png(image, b"".join(lines), interlaced=True)


def filter_lines(image: Image.Image) -> bytes:
    """Rows that follow each other with all five filters."""
    pixels = np.asarray(image).astype(int)
    above, left, corner = np.zeros_like(pixels), np.zeros_like(pixels), np.zeros_like(pixels)
    above[1:], left[:, 1:], corner[1:, 1:] = pixels[:-1], pixels[:, :-1], pixels[:-1, :-1]
    guess = left + above - corner
    near = np.stack([abs(guess - left), abs(guess - above), abs(guess - corner)]).argmin(0)
    paeth = np.choose(near, [left, above, corner])
    guesses = [np.zeros_like(pixels), left, above, (left + above) // 2, paeth]
    filtered = [(row - guesses[y % 5][y]) % 256 for y, row in enumerate(pixels)]
    lines = [bytes([y % 5]) + row.astype(np.uint8).tobytes() for y, row in enumerate(filtered)]
    return make_png(image, b"".join(lines))


def list_chunks(png: bytes) -> list[tuple[bytes, bytes]]:
    """Kind and data of each chunk of a whole file."""
    chunks, start = list[tuple[bytes, bytes]](), len(SIGNATURE)
    while start < len(png):
        length = int.from_bytes(png[start : start + 4])
        chunks.append((png[start + 4 : start + 8], png[start + 8 : start + 8 + length]))
        start += length + 12
    return chunks


def join_chunks(chunks: Iterable[tuple[bytes, bytes]]) -> bytes:
    """With the right checksums."""
    return SIGNATURE + b"".join(make_chunk(kind, data) for kind, data in chunks)


def count_decodes(monkeypatch: pytest.MonkeyPatch) -> Counter[bool]:
    """Whether what was handed to the quick decoder was decoded by it, from now on."""
    counts: Counter[bool] = Counter()
    decode = kornia_rs.io.decode_image_png_u8

    def count(*arguments: object) -> np.ndarray:
        try:
            pixels = decode(*arguments)
        except Exception:
            counts[False] += 1
            raise
        counts[True] += 1
        return pixels

    monkeypatch.setattr(kornia_rs.io, "decode_image_png_u8", count)
    return counts


def decode_upright(content: bytes, *, quick: bool) -> tuple[object, ...]:
    """Mode, size and bytes of the upright image, as a crop is made of it; or why there is none."""
    file = io.BytesIO(content)
    try:
        with open_header(file) as header:
            read_upright_size(header)
            image = load_pixels(header, file) if quick else header
            ImageOps.exif_transpose(image, in_place=True)
            return image.mode, image.size, image.tobytes(), image.info.get("transparency"), image.has_transparency_data
    except Exception as error:  # noqa: BLE001  (Pillow raises nearly anything)
        return type(error), str(error)
