"""What a training square shows: nothing hidden, nothing clipped, and no more memory than the square needs."""

import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from configs.schema import DataConfig
from configs.solve.buckets import CropSize
from store.dataset.headers import open_header, read_upright_size
from tests.pngs import join_chunks, make_chunk
from train.data import colours, images
from train.data.colours import flatten_colours
from train.data.images import Crop, describe_crop, load_crop, scale_pixels

DATA = DataConfig(images="x")
WHITE = [255, 255, 255]


def levels(path: Path, side: int = 8, crop_at: tuple[float, float] = (0.5, 0.5), **data: str) -> np.ndarray:
    """The square's pixels as they are displayed: (side, side, 3) of 0 … 255."""
    with open(path, "rb") as file:
        square, _ = load_crop(file, DataConfig(images="x", **data), CropSize(side, side), crop_at, False)
    return square.transpose(1, 2, 0).astype(int)


def test_levels_are_scaled_in_fp32_to_the_same_bits_as_by_numpy() -> None:
    """These bits are a promise: other pixels would be another run."""
    every = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16)
    scaled = scale_pixels(torch.from_numpy(every)).numpy()
    assert scaled.dtype == np.float32
    assert scaled.tobytes() == (every.astype(np.float32) / 127.5 - 1.0).tobytes()
    assert (scaled.min(), scaled.max()) == (-1, 1)


def crop_of(path: Path, side: int, crop_at: tuple[float, float]) -> Crop:
    with open(path, "rb") as file:
        return load_crop(file, DATA, CropSize(side, side), crop_at, False)[1]


def saved(image: Image.Image, path: Path, **how: object) -> Path:
    image.save(path, **how)
    return path


def tif(values: object, dtype: type, path: Path) -> Path:
    """An 8 × 8 grey image of one value per pixel, or of one for all."""
    return saved(Image.fromarray(np.broadcast_to(np.asarray(values, dtype), (8, 8))), path)


RAMP = np.arange(64).reshape(8, 8) / 63  # 0 … 1, from black to white


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_grey_keeps_its_greys(tmp_path: Path, suffix: str) -> None:
    path = saved(Image.fromarray(np.rint(RAMP * 65535).astype(np.uint16)), tmp_path / f"grey.{suffix}")
    assert Image.open(path).mode == "I;16"
    assert (levels(path) == np.rint(RAMP * 255)[..., None]).all()


def test_32_bit_grey_within_16_bits_keeps_its_greys(tmp_path: Path) -> None:
    path = tif(np.rint(RAMP * 65535), np.int32, tmp_path / "grey.tif")
    assert Image.open(path).mode == "I"
    assert (levels(path) == np.rint(RAMP * 255)[..., None]).all()


def test_floats_from_0_to_1_keep_their_greys(tmp_path: Path) -> None:
    path = tif(RAMP, np.float32, tmp_path / "grey.tif")
    assert Image.open(path).mode == "F"
    assert (levels(path) == np.rint(RAMP * 255)[..., None]).all()


@pytest.mark.parametrize(
    ("value", "dtype", "shown"),
    [(65536, np.int32, "65536"), (-1, np.int32, "-1"), (1.5, np.float32, "1.5"), (np.nan, np.float32, "nan")],
)
def test_numbers_without_a_stated_meaning_are_refused(tmp_path: Path, value: float, dtype: type, shown: str) -> None:
    """A height map in metres is no picture; which of its values would be white?"""
    values = np.zeros((8, 8))
    values[3, 4] = value
    path = tif(values, dtype, tmp_path / "map.tif")
    with pytest.raises(ValueError, match=rf"its values reach from .*{shown}.*save it"):
        levels(path)


def transparent(mode: str, path: Path) -> Path:
    """Left half black, right half of a colour that is transparent, in one of the ways a file can say so."""
    image = Image.new("P" if mode == "PA" else mode, (8, 8))
    hidden = {"RGBA": (255, 0, 0, 0), "LA": (99, 0), "RGB": (255, 0, 255), "L": 7, "P": 1, "PA": 1}[mode]
    if mode in ("P", "PA"):
        image.putpalette([0, 0, 0, 255, 0, 255])
    if mode in ("RGBA", "LA"):
        image.paste((0, 0, 0, 255) if mode == "RGBA" else (0, 255), (0, 0, 8, 8))
    image.paste(hidden, (4, 0, 8, 8))
    if mode == "PA":
        return saved(image, path, transparency=bytes([255, 0]))
    return saved(image, path) if mode in ("RGBA", "LA") else saved(image, path, transparency=hidden)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "RGB", "L", "P", "PA"])
def test_transparency_is_white(tmp_path: Path, mode: str) -> None:
    shown = levels(transparent(mode, tmp_path / "image.png"))
    assert (shown[:, :4] == 0).all()
    assert (shown[:, 4:] == WHITE).all()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "RGB", "L", "P", "PA"])
@pytest.mark.parametrize(("background", "shown"), [("black", 0), ("#808080", 128)])
def test_transparency_is_the_background(tmp_path: Path, mode: str, background: str, shown: int) -> None:
    pixels = levels(transparent(mode, tmp_path / "image.png"), background=background)
    assert (pixels[:, 4:] == shown).all()


@pytest.mark.parametrize("mode", ["RGBA", "P", "F", "I;16", "CMYK"])
def test_a_large_image_is_converted_in_bands_to_the_same_pixels(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its memory is that of the file's own pixels and of those that are shown, whatever lies between."""
    noise = np.random.default_rng(0).integers(0, 256, (37, 23, 4), dtype=np.uint8)
    image = Image.fromarray(noise)
    if mode in ("F", "I;16"):
        image = Image.fromarray(noise[..., 0] / np.float32(255) if mode == "F" else noise[..., 0].astype(np.uint16))
    image = image.convert("RGB").convert(mode) if mode in ("P", "CMYK") else image
    assert image.mode == mode
    if mode == "P":
        image.info["transparency"] = bytes(range(256))
    at_once = np.asarray(flatten_colours(image, "red"))
    monkeypatch.setattr(colours, "BAND", 50)
    assert (np.asarray(flatten_colours(image, "red")) == at_once).all()


@pytest.mark.parametrize(
    ("mode", "pixel", "shown", "suffix"),
    [
        ("LAB", (138, 209, 198), (255, 0, 0), "tif"),  # L* = 54, a* = 81, b* = 70
        ("YCbCr", (76, 85, 255), (254, 0, 0), "jpg"),
        ("HSV", (0, 255, 255), (255, 0, 0), None),
        ("CMYK", (0, 255, 255, 0), (255, 0, 0), "tif"),
        ("CMYK", (0, 255, 255, 0), (255, 0, 0), "jpg"),
    ],
)
def test_colours_told_in_another_way_are_the_same_colours(
    tmp_path: Path, mode: str, pixel: tuple[int, ...], shown: tuple[int, ...], suffix: str | None
) -> None:
    image = Image.new(mode, (8, 8), pixel)
    if suffix is None:  # no file holds it, and some of Pillow's readers may come to answer it
        found = np.asarray(flatten_colours(image, "white")).astype(int)
    else:
        found = levels(saved(image, tmp_path / f"image.{suffix}"))
    assert np.abs(found[4, 4] - shown).max() <= 5


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "tif"])
def test_of_several_frames_the_first_is_shown(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    path = saved(frames[0], tmp_path / f"two.{suffix}", save_all=True, append_images=frames[1:])
    with Image.open(path) as image:
        assert image.n_frames == 2
    assert np.abs(levels(path) - [255, 0, 0]).max() <= 4


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")  # pytest resets what the module ignores
@pytest.mark.parametrize("size", [(9500, 9500), (20_000, 10_000)])
def test_an_image_with_too_many_pixels_is_refused_by_its_header(tmp_path: Path, size: tuple[int, int]) -> None:
    """Also those of which Pillow only warns: 200 bytes of them fill a rank's memory."""
    header = struct.pack(">IIBBBBB", *size, 8, 2, 0, 0, 0)
    content = join_chunks([(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 99)), (b"IEND", b"")])
    (tmp_path / "bomb.png").write_bytes(content)
    with pytest.raises(ValueError, match=r"^it has more than 89,478,485 pixels, .*; make it smaller$"):
        levels(tmp_path / "bomb.png")


def test_postscript_is_not_run(tmp_path: Path) -> None:
    """Pillow goes by what is in a file: it would start Ghostscript on one that is called a picture."""
    (tmp_path / "a.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n")
    with pytest.raises(ValueError, match="it is PostScript, which is a program and no picture; save it as PNG"):
        levels(tmp_path / "a.png")


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_the_header_tells_the_upright_size(tmp_path: Path, suffix: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(Image.new("RGB", (80, 40)), tmp_path / f"a.{suffix}", exif=exif)
    with open(path, "rb") as file:
        width, height = read_upright_size(open_header(file))
    assert (height, width) == crop_of(path, 8, (0.5, 0.5)).original
    assert ((width, height) == (80, 40)) == (orientation in (1, 3))


def test_what_is_half_transparent_is_half_white(tmp_path: Path) -> None:
    shown = levels(saved(Image.new("RGBA", (8, 8), (255, 0, 0, 128)), tmp_path / "image.png"))
    assert shown[0, 0].tolist() == [255, 127, 127]


def test_what_shows_through_has_the_bits_of_alpha_compositing() -> None:
    """For every value, opacity and background of a channel: it is another call of Pillow's, which is faster."""
    values, opacities = np.meshgrid(np.arange(256, dtype=np.uint8), np.arange(256, dtype=np.uint8))
    image = Image.fromarray(np.stack([values, values, values, opacities], -1))
    for level in range(256):
        ground = Image.new("RGBA", image.size, (level, level, level))
        shown = np.asarray(flatten_colours(image, f"rgb({level}, {level}, {level})"))
        assert (shown == np.asarray(Image.alpha_composite(ground, image).convert("RGB"))).all()


def test_the_next_image_is_decoded_into_the_memory_of_the_last_one(tmp_path: Path) -> None:
    path = saved(Image.new("RGB", (64, 64), (255, 0, 0)), tmp_path / "image.png")
    levels(path)
    before = Image.core.get_stats()["reused_blocks"]  # type: ignore[attr-defined]
    levels(path)
    assert Image.core.get_stats()["reused_blocks"] > before  # type: ignore[attr-defined]


def test_one_grey_of_16_bits_may_be_transparent(tmp_path: Path) -> None:
    """Only that one: its neighbour, which is the same in 8 bits, stays."""
    grey = np.zeros((8, 8), np.uint16)
    grey[:, 2:4], grey[:, 4:] = 1001, 1000
    path = saved(Image.fromarray(grey), tmp_path / "grey.png")
    data = path.read_bytes()
    path.write_bytes(data[:33] + make_chunk(b"tRNS", (1000).to_bytes(2, "big")) + data[33:])
    shown = levels(path)
    assert (shown[:, :2] == 0).all()
    assert (shown[:, 2:4] == round(1001 / 257)).all()
    assert (shown[:, 4:] == WHITE).all()


def test_a_transparent_colour_of_16_bits_is_refused(tmp_path: Path) -> None:
    """Pillow has let go of the lower 8 bits of the pixels that it would have to be compared with."""
    header = struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0)
    pixels = zlib.compress((b"\0" + bytes(8 * 6)) * 8)
    chunks = [(b"IHDR", header), (b"tRNS", b"\1\0\2\0\3\0"), (b"IDAT", pixels), (b"IEND", b"")]
    (tmp_path / "a.png").write_bytes(join_chunks(chunks))
    with pytest.raises(ValueError, match="transparent colour in 16 bits; save it with an alpha channel"):
        levels(tmp_path / "a.png")


@pytest.mark.parametrize("size", [(320, 240), (240, 320), (100, 37), (20, 61), (64, 64), (64, 200), (601, 64)])
@pytest.mark.parametrize("at", [(0.0, 0.0), (0.5, 0.5), (0.3, 0.8), (0.999, 0.999)])
def test_the_square_is_a_part_of_the_resized_image(
    tmp_path: Path, size: tuple[int, int], at: tuple[float, float]
) -> None:
    """Only what the square shows is resized, and it shows what resizing all of the image would show: one of 255 levels
    apart at the most, from rounding, in less than one of a thousand values."""
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    path = saved(Image.fromarray(noise), tmp_path / "noise.png")
    width, height = (max(64, round(length * 64 / min(size))) for length in size)
    whole = Image.open(path).resize((width, size[1]), Image.Resampling.LANCZOS)
    whole = whole.resize((width, height), Image.Resampling.LANCZOS)  # Pillow itself takes either side first
    left, top = int(at[0] * (width - 63)), int(at[1] * (height - 63))
    expected = np.asarray(whole.crop((left, top, left + 64, top + 64))).astype(int)
    apart = np.abs(levels(path, 64, at) - expected)
    assert apart.max() <= 1
    assert (apart > 0).mean() < 1e-3


@pytest.mark.parametrize("size", [(320, 240), (240, 320), (100, 37), (20, 61), (64, 64), (64, 200), (601, 64)])
@pytest.mark.parametrize("cut", [CropSize(40, 72), CropSize(72, 40)])
@pytest.mark.parametrize("at", [(0.5, 0.5), (0.3, 0.8)])
def test_any_crop_is_a_part_of_the_image_that_just_covers_it(
    tmp_path: Path, size: tuple[int, int], cut: CropSize, at: tuple[float, float]
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    path = saved(Image.fromarray(noise), tmp_path / "noise.png")
    scale = max(cut.width / size[0], cut.height / size[1])
    width, height = max(cut.width, round(size[0] * scale)), max(cut.height, round(size[1] * scale))
    whole = Image.open(path).resize((width, size[1]), Image.Resampling.LANCZOS)
    whole = whole.resize((width, height), Image.Resampling.LANCZOS)
    left, top = int(at[0] * (width - cut.width + 1)), int(at[1] * (height - cut.height + 1))
    expected = np.asarray(whole.crop((left, top, left + cut.width, top + cut.height))).astype(int)
    with open(path, "rb") as file:
        shown, crop = load_crop(file, DATA, cut, at, False)
    apart = np.abs(shown.transpose(1, 2, 0).astype(int) - expected)
    assert apart.max() <= 1
    assert (apart > 0).mean() < 2e-3
    assert (
        crop == Crop((size[1], size[0]), (top, left), (cut.height, cut.width)) == describe_crop(*size, cut, at, False)
    )
    assert min(width - cut.width, height - cut.height) == 0


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_jpeg_is_decoded_no_larger_than_its_crop_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, orientation: int
) -> None:
    """Also where it lies on its side: at a half, of 1600 × 800 pixels for 640 × 384 of them."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.linear_gradient("L").convert("RGB").resize((1600, 800))
    stored = image if orientation == 1 else image.transpose(Image.Transpose.ROTATE_90)
    path = saved(stored, tmp_path / "wide.jpg", exif=exif, quality=95)
    decoded = []
    monkeypatch.setattr(images, "flatten_colours", lambda shown, _: decoded.append(shown.size) or shown.convert("RGB"))
    with open(path, "rb") as file:
        shown, crop = load_crop(file, DATA, CropSize(384, 640), (0.5, 0.5), False)
    assert decoded == [(800, 400)]
    assert (shown.shape, crop.original) == ((3, 384, 640), (800, 1600))
    assert shown[0, 0].mean() < 40 < 215 < shown[0, -1].mean()


@pytest.mark.parametrize(("suffix", "how"), [("png", {}), ("jpg", {}), ("jpg", {"exif": 6})])
def test_the_crop_says_what_the_square_shows(tmp_path: Path, suffix: str, how: dict[str, int]) -> None:
    """Also of a JPEG that was decoded at an eighth of its size, and of one that lies on its side."""
    exif = Image.Exif()
    exif[0x0112] = how.get("exif", 1)
    image = Image.new("RGB", (1600, 800))
    path = saved(image.transpose(Image.Transpose.ROTATE_90) if how else image, tmp_path / f"wide.{suffix}", exif=exif)
    assert crop_of(path, 64, (0.5, 0.5)) == Crop((800, 1600), (0, 32), (64, 64))
    assert crop_of(path, 64, (0.0, 0.9)) == Crop((800, 1600), (0, 0), (64, 64))
    assert crop_of(path, 64, (0.999, 0.0)) == Crop((800, 1600), (0, 64), (64, 64))


def test_what_is_no_image_is_named_without_its_handle(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("this is no image")
    with pytest.raises(ValueError, match=r"^it is no image, or of a format that Pillow does not know$"):
        levels(tmp_path / "a.png")


@pytest.mark.parametrize("size", [(1, 3000), (3000, 1)])
def test_a_thin_image_takes_no_more_memory_than_its_square(tmp_path: Path, size: tuple[int, int]) -> None:
    path = saved(Image.new("RGB", size, "red"), tmp_path / "thin.png")
    done = subprocess.run([sys.executable, "-c", _PEAK, str(path)], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 64, "MiB"
    assert (levels(path) == [255, 0, 0]).all()


_PEAK = """
import re, sys
from pathlib import Path
from configs.schema import DataConfig
from configs.solve.buckets import CropSize
from train.data.images import load_crop

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024

before = peak()
load_crop(open(sys.argv[1], "rb"), DataConfig(images="x"), CropSize(512, 512), (0.5, 0.5), False)
print(peak() - before)
"""


def test_a_crop_is_told_by_the_images_size_alone(tmp_path: Path) -> None:
    """A JPEG is decoded at a smaller scale, whose sides are rounded: the cache knows nothing of that."""
    size, at = CropSize(64, 64), (0.9, 0.5)
    for width in range(900, 930):
        path = tmp_path / "image.jpg"
        Image.new("RGB", (width, 521)).save(path)
        with open(path, "rb") as file:
            assert load_crop(file, DATA, size, at, False)[1] == describe_crop(width, 521, size, at, False)
