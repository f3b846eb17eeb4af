"""Which part of an image a position shows, before anyone has looked at the image.

A crop is a point: x and y as fractions of the room that is left beside it; (0.5, 0.5) is the centre.
"""

from hashlib import sha256

from configs.schema import DataConfig
from train.data.randomness import Purpose, draw_uniform, make_generator

CENTER = (0.5, 0.5)


def draw_crop(data: DataConfig, seed: int, position: int, name: str) -> tuple[float, float]:
    """The crop at `position`, where the sample of this name stands."""
    if data.crop == "center":
        return CENTER
    if data.crops is None:
        return _draw_point(seed, position)
    which = int(draw_uniform(seed, Purpose.CROP_CHOICE, position) * data.crops)
    return list_crops(data, seed, name)[which]


def list_crops(data: DataConfig, seed: int, name: str) -> list[tuple[float, float]]:
    """All crops that the sample of this name is ever shown with, where they can be listed. They stay the same whatever
    samples come or go beside it, so that it is not encoded again."""
    if data.crop == "center":
        return [CENTER]
    assert data.crops is not None, "each position has another one"
    image = int.from_bytes(sha256(name.encode()).digest()[:8])
    return [_draw_point(seed, image, which) for which in range(1, data.crops + 1)]  # 0 are those of positions


def _draw_point(seed: int, position: int, part: int = 0) -> tuple[float, float]:
    x, y = make_generator(seed, Purpose.CROP, position, part).random(2)
    return float(x), float(y)
