"""What is quicker than Pillow has Pillow's pixels, and leaves to Pillow whatever it does not know."""

import io
import random
from collections import Counter

import kornia_rs.io
import numpy as np
import pytest
from PIL import Image

from store.dataset.headers import open_header
from store.dataset.pixels import load_pixels
from tests.pngs import COLOURS, SIGNATURE, filter_lines, interlace, look_at, make_chunk, make_png


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
    "EXIF in a text behind the pixels": put_behind(
        save(RGB), make_chunk(b"tEXt", b"Raw profile type exif\0\nexif\n34\n" + turn().hex().encode() + b"\n")
    ),
    "XMP behind the pixels": put_behind(
        save(RGB), make_chunk(b"iTXt", b'XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation="6"/>')
    ),
    "a wrong checksum": save(RGB)[:-16] + b"oops" + save(RGB)[-12:],
    "no end": save(RGB)[:-12],
    "half": save(RGB)[:900],
    "rows that are missing": make_png(RGB, (b"\0" + bytes(99)) * 20),
    "a filter that there is not": make_png(RGB, (b"\7" + bytes(99)) * 21),
    "JPEG": save(RGB, "JPEG"),
}


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Counter[bool]:
    """Whether what was handed to the quick decoder was decoded by it."""
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


@pytest.mark.parametrize("name", PLAIN)
def test_a_plain_png_is_decoded_quickly_to_the_same_pixels(name: str, decoded: Counter[bool]) -> None:
    assert look_at(PLAIN[name], quick=True) == look_at(PLAIN[name], quick=False)
    assert look_at(PLAIN[name], quick=True)[0] in ("RGB", "RGBA")
    assert decoded[True] == 2


@pytest.mark.parametrize("name", OTHER)
def test_whatever_else_it_is_is_what_pillow_makes_of_it(name: str, decoded: Counter[bool]) -> None:
    assert look_at(OTHER[name], quick=True) == look_at(OTHER[name], quick=False)
    assert decoded[True] == 0


def test_pictures_on_their_side_are_turned() -> None:
    """So that the cases above show what they are there for."""
    turned = {name for name, content in OTHER.items() if look_at(content, quick=True)[1] == (21, 33)}
    assert turned == {"EXIF", "EXIF behind the pixels", "EXIF in a text behind the pixels", "XMP behind the pixels"}


def test_of_damage_pillow_is_the_judge(decoded: Counter[bool]) -> None:
    """Whatever byte is another, and wherever the file ends: the same pixels, or the same sentence."""
    draw = random.Random(0)
    whole = [save(make_image(mode, 20, 12), compress_level=level) for mode in COLOURS for level in (0, 6)]
    same = 0
    for _ in range(3000):
        content = bytearray(draw.choice(whole))
        if draw.random() < 0.2:
            del content[draw.randrange(len(content)) :]
        else:
            for _ in range(draw.choice((1, 1, 3, 20))):
                content[draw.randrange(len(content))] = draw.randrange(256)
        expected = look_at(bytes(content), quick=False)
        if isinstance(expected[1], tuple) and expected[1][0] * expected[1][1] > 10**6:
            continue  # a header of so many pixels, which take their time
        assert look_at(bytes(content), quick=True) == expected
        same += 1
    assert same > 2900
    assert decoded[False] > 500, "most of the damage is found by the quick decoder first"


def test_a_part_of_a_shard_is_read_alone(decoded: Counter[bool]) -> None:
    """The file may stand anywhere, and the header's reader has moved it."""
    file = io.BytesIO(PLAIN["RGBA"])
    with open_header(file) as header:
        file.seek(3)
        assert load_pixels(header, file).tobytes() == RGBA.tobytes()
    assert decoded[True] == 1
