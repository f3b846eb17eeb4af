"""Which part of an image a position shows: of a few crops that can be listed, or of any."""

from collections import Counter

import pytest

from configs.schema import DataConfig
from train.data.crops import draw_crop, list_crops

FEW = DataConfig(images="x", crop="random", crops=3)


def test_golden_crops() -> None:
    """These numbers are a promise: other crops at these positions would be another run."""
    assert draw_crop(DataConfig(images="x"), 3, 7, "a.png") == (0.5, 0.5)
    assert draw_crop(DataConfig(images="x", crop="random"), 3, 7, "a.png") == (0.839297244801297, 0.2512144474821856)
    assert list_crops(FEW, 3, "a.png") == [
        (0.04019214584288222, 0.6709276435634091),
        (0.7885194055865643, 0.051913078472888396),
        (0.7726092700690358, 0.15330650381068067),
    ]
    listed = list_crops(FEW, 3, "a.png")
    assert [listed.index(draw_crop(FEW, 3, position, "a.png")) for position in range(12)] == [
        2,
        1,
        0,
        0,
        2,
        1,
        1,
        2,
        2,
        2,
        1,
        2,
    ]


def test_a_few_crops_are_the_images_own_and_are_drawn_about_equally_often() -> None:
    drawn = Counter(draw_crop(FEW, 5, position, "a.png") for position in range(900))
    assert set(drawn) == set(list_crops(FEW, 5, "a.png"))
    assert min(drawn.values()) > 240
    assert not set(list_crops(FEW, 5, "b.png")) & set(drawn)
    assert not set(list_crops(FEW, 6, "a.png")) & set(drawn)
    assert list_crops(FEW.model_copy(update={"crops": 5}), 5, "a.png")[:3] == list_crops(FEW, 5, "a.png")


def test_any_crop_is_the_positions_own() -> None:
    anywhere = DataConfig(images="x", crop="random")
    assert (
        draw_crop(anywhere, 5, 3, "a.png") == draw_crop(anywhere, 5, 3, "b.png") != draw_crop(anywhere, 5, 4, "a.png")
    )
    with pytest.raises(AssertionError):
        list_crops(anywhere, 5, "a.png")
