"""What is quicker than Pillow has Pillow's pixels, and leaves to Pillow whatever it does not know."""

import io
import random
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import kornia_rs.io
import numpy as np
import pytest
from PIL import Image

from store.dataset.headers import open_header
from tests.pngs import (
    COLOUR_TYPES,
    SIGNATURE,
    count_decodes,
    decode_upright,
    filter_lines,
    interlace,
    join_chunks,
    list_chunks,
    make_chunk,
    make_png,
)
from train.data.pixels import load_pixels


def make_image(mode: str, width: int = 33, height: int = 21) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (height, width, len(mode)), dtype=np.uint8)
    return Image.fromarray(values)


def save(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def put_behind(png: bytes, extra: bytes) -> bytes:
    return png[:-12] + extra + png[-12:]


def turn() -> bytes:
    """EXIF that says: on its side."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif.tobytes()


RGB, RGBA = make_image("RGB"), make_image("RGBA")
SIXTEEN = make_png(RGB, (b"\0" + bytes(range(198))) * 21, bits=16)
PLAIN = {
    "RGB": save(RGB),
    "RGBA": save(RGBA),
    "not compressed": save(RGB, compress_level=0),
    "one pixel": save(make_image("RGBA", 1, 1)),
    "many IDAT": save(make_image("RGB", 400, 300)),
    "every filter": filter_lines(RGB),
    "every filter, RGBA": filter_lines(RGBA),
    "interlaced": interlace(RGB),
    "interlaced, RGBA": interlace(RGBA),
    "EXIF in a text behind the pixels": put_behind(
        save(RGB), make_chunk(b"tEXt", b"Raw profile type exif\0\nexif\n34\n" + turn().hex().encode() + b"\n")
    ),
    "text behind the pixels": put_behind(save(RGB), make_chunk(b"tEXt", b"date\0today")),
    "a colour profile": save(RGB, icc_profile=b"profile"),
    "a gamma": SIGNATURE + save(RGB)[8:33] + make_chunk(b"gAMA", (100_000).to_bytes(4, "big")) + save(RGB)[33:],
    "more behind the end": save(RGB) + b"more",
}
OTHER = {
    "16 bits": SIXTEEN,
    "palette": save(RGB.convert("P")),
    "grey": save(RGB.convert("L")),
    "grey with alpha": save(RGBA.convert("LA")),
    "black and white": save(RGB.convert("1")),
    "grey of 16 bits": save(Image.fromarray(np.arange(693, dtype=np.uint16).reshape(21, 33))),
    "a transparent colour": save(RGB, transparency=RGB.getpixel((0, 0))),
    "animated": save(RGB, save_all=True, append_images=[RGB.transpose(Image.Transpose.ROTATE_180)]),
    "animated, shown otherwise": save(RGB, save_all=True, append_images=[RGBA], default_image=True),
    "EXIF": save(RGB, exif=turn()),
    "EXIF behind the pixels": put_behind(save(RGB), make_chunk(b"eXIf", turn().removeprefix(b"Exif\0\0"))),
    "a transparent colour behind the pixels": put_behind(
        save(RGB), make_chunk(b"tRNS", b"".join(bytes([0, value]) for value in RGB.getpixel((0, 0))))
    ),
    "too much text behind the pixels": put_behind(
        save(RGB), make_chunk(b"zTXt", b"comment\0\0" + zlib.compress(bytes(2_000_000)))
    ),
    "XMP behind the pixels": put_behind(
        save(RGB), make_chunk(b"iTXt", b'XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation="6"/>')
    ),
    "a wrong checksum of a chunk, which Pillow does not look at": save(RGB)[:-16] + b"oops" + save(RGB)[-12:],
    "no end": save(RGB)[:-12],
    "half": save(RGB)[:900],
    "half of the end": save(RGB)[:-5],
    "rows that are missing": make_png(RGB, (b"\0" + bytes(99)) * 20),
    "a filter that there is not": make_png(RGB, (b"\7" + bytes(99)) * 21),
    "JPEG": save(RGB, "JPEG"),
}


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Counter[bool]:
    return count_decodes(monkeypatch)


@pytest.mark.parametrize("name", PLAIN)
def test_a_plain_png_is_decoded_quickly_to_the_same_pixels(name: str, decoded: Counter[bool]) -> None:
    assert decode_upright(PLAIN[name], quick=True) == decode_upright(PLAIN[name], quick=False)
    assert decode_upright(PLAIN[name], quick=True)[0] in ("RGB", "RGBA")
    assert decoded[True] == 2


@pytest.mark.parametrize("name", OTHER)
def test_whatever_else_it_is_is_what_pillow_makes_of_it(name: str, decoded: Counter[bool]) -> None:
    assert decode_upright(OTHER[name], quick=True) == decode_upright(OTHER[name], quick=False)
    assert decoded[True] == 0


def test_a_picture_on_its_side_is_turned() -> None:
    """By its header, as the index has its size, and by nothing that stands behind the pixels."""
    turned = {name for name, content in OTHER.items() if decode_upright(content, quick=True)[1] == (21, 33)}
    assert turned == {"EXIF"}


def change_some(content: bytes, draw: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(draw.choice((1, 1, 3, 20)) if changed else 0):
        changed[draw.randrange(len(changed))] = draw.randrange(256)
    return bytes(changed)


def damage(png: bytes, draw: random.Random) -> bytes:
    """Another byte somewhere, an end somewhere, or, with checksums that are right, another chunk or other rows."""
    where = draw.choice(("file", "end", "chunk", "rows", "behind"))
    if where == "file":
        return change_some(png, draw)
    if where == "end":
        return png[: draw.randrange(len(png))]
    chunks = list_chunks(png)
    if where == "chunk":
        number = draw.randrange(len(chunks))
        kind, data = chunks[number]
        chunks[number] = kind, change_some(data, draw)
    elif where == "rows":
        pixels = b"".join(data for kind, data in chunks if kind == b"IDAT")
        rows = change_some(zlib.decompress(pixels), draw)
        chunks = [
            chunks[0],
            (b"IDAT", zlib.compress(rows[: draw.choice((None, draw.randrange(len(rows))))])),
            chunks[-1],
        ]
    else:
        kind = draw.choice((b"tRNS", b"acTL", b"zTXt", b"iTXt", b"tEXt", b"gAMA", b"iCCP", b"IDAT", b"IHDR", b"none"))
        chunks.insert(-1, (kind, draw.randbytes(draw.choice((0, 2, 4, 6, 13, 100)))))
    return join_chunks(chunks)


def has_whole_pixels(png: bytes) -> bool:
    """Whether their own checksum is right, which lies behind them."""
    try:
        zlib.decompress(b"".join(data for kind, data in list_chunks(png) if kind == b"IDAT"))
    except zlib.error:
        return False
    return True


def test_of_damage_pillow_is_the_judge(decoded: Counter[bool]) -> None:
    """Whatever byte is another, and wherever the file ends: the same pixels, or the same sentence. But for the one
    checksum that the quick decoder does not look at, where all others are right."""
    draw = random.Random(0)
    whole = [save(make_image(mode, 20, 12), compress_level=level) for mode in COLOUR_TYPES for level in (0, 6)]
    seen: Counter[str] = Counter()
    for _ in range(4000):
        content = damage(draw.choice(whole), draw)
        if int.from_bytes(content[16:20]) * int.from_bytes(content[20:24]) > 10**6:
            continue  # a header of so many pixels, which take their time
        expected, before = decode_upright(content, quick=False), decoded[True]
        found = decode_upright(content, quick=True)
        if found != expected:
            assert expected == (OSError, "broken data stream when reading image file")
            assert not has_whole_pixels(content)
        seen["the same" if found == expected else "other"] += 1
        seen["decoded" if isinstance(expected[1], tuple) else "refused"] += 1
        seen["quick"] += decoded[True] - before
    assert seen["the same"] > 10 * seen["other"]
    assert seen["decoded"] > 1000
    assert seen["refused"] > 1000
    assert seen["quick"] > 500


def test_threads_leave_it_to_pillow(decoded: Counter[bool]) -> None:
    """Which lets go of the interpreter's lock; the quick decoder would let one of them decode at a time."""
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(decode_upright, PLAIN["RGB"], quick=True).result()
    assert found == decode_upright(PLAIN["RGB"], quick=False)
    assert decoded[True] == 0


def test_a_decoder_that_changed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """And not taken for a file that is damaged."""
    monkeypatch.setattr(kornia_rs.io, "decode_image_png_u8", lambda content: content)
    file = io.BytesIO(PLAIN["RGB"])
    with open_header(file) as header, pytest.raises(TypeError, match="positional argument"):
        load_pixels(header, file)


def test_a_file_is_read_no_further_than_its_pixels_can_reach(decoded: Counter[bool]) -> None:
    """Nobody knows what else lies in it, and memory is bounded by pixels elsewhere."""
    content = save(RGB) + bytes(3 * 2**20)
    assert decode_upright(content, quick=True) == decode_upright(content, quick=False)
    assert decoded[True] == 0


def test_a_part_of_a_shard_is_read_alone(decoded: Counter[bool]) -> None:
    """The file may stand anywhere, and the header's reader has moved it."""
    file = io.BytesIO(PLAIN["RGBA"])
    with open_header(file) as header:
        file.seek(3)
        assert load_pixels(header, file).tobytes() == RGBA.tobytes()
    assert decoded[True] == 1
