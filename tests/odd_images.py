"""Images of all shapes, and the config's data that puts them into buckets."""

from pathlib import Path

import numpy as np
from PIL import Image

SIZES = [(40, 40), (80, 40), (36, 70), (48, 40), (200, 100), (33, 31), (50, 90), (64, 30), (41, 40)]


def make_odd_images(folder: Path, count: int) -> Path:
    """With a caption beside each."""
    folder.mkdir(parents=True)
    draw = np.random.default_rng(count)
    for number in range(count):
        width, height = SIZES[number % len(SIZES)]
        pixels = draw.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:03d}.png")
        (folder / f"{number:03d}.txt").write_text(f"a blue square {number}")
    return folder


def make_bucket_data(folder: Path) -> dict[str, object]:
    """The config's data: two sources in three buckets each, 29.5 samples per epoch, and three crops of each image."""
    sources = [
        {"images": str(make_odd_images(folder / "odd-19", 19))},
        {"images": str(make_odd_images(folder / "odd-7", 7)), "repeats": 1.5},
    ]
    crops = {"crop": "random", "crops": 3, "flip": True}
    return {"sources": sources, "buckets": {"side": 32, "step": 8}, "workers": 0} | crops
