"""The sizes of buckets, which image goes where, and what that saves."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.errors import UserError
from configs.reading.load import load_config
from configs.schema import DataConfig
from configs.solve.buckets import (
    CropSize,
    choose_crop_size,
    choose_crop_sizes,
    choose_grain,
    describe_crop_sizes,
    list_crop_sizes,
    measure_cropped,
)


def data(**buckets: object) -> DataConfig:
    return DataConfig.model_validate({"images": "i", "buckets": buckets})


def test_the_sizes_of_512_pixels() -> None:
    assert list(map(str, list_crop_sizes(data()))) == ["384×640", "448×576", "512×512", "576×448", "640×384"]
    assert list_crop_sizes(DataConfig(images="i", resolution=768)) == [CropSize(768, 768)]
    assert data(side=768).resolution == 768
    assert describe_crop_sizes(data()) == "512 px, in 5 shapes from 384×640 to 640×384"
    assert describe_crop_sizes(data(max_ratio=1)) == "512 px"
    assert list_crop_sizes(data(max_ratio=1)) == [CropSize(512, 512)]


@settings(deadline=None)  # the machine may be busy
@given(st.integers(1, 24), st.integers(1, 16), st.floats(1, 16))
def test_sizes_are_multiples_of_the_step_with_no_more_pixels_than_the_square(
    steps: int, eights: int, max_ratio: float
) -> None:
    step = 8 * eights
    sizes = list_crop_sizes(data(side=steps * step, step=step, max_ratio=max_ratio))
    assert len(set(sizes)) == len(sizes)
    ratios = [size.width / size.height for size in sizes]
    assert ratios == sorted(ratios)
    assert set(sizes) == {CropSize(size.width, size.height) for size in sizes}
    for size in sizes:
        assert size.width % step == size.height % step == 0
        assert size.pixels <= (steps * step) ** 2
        assert max(size) <= max_ratio * min(size)


@settings(deadline=None)  # the machine may be busy
@given(st.lists(st.tuples(st.integers(1, 9000), st.integers(1, 9000)), min_size=1, max_size=20))
def test_an_image_goes_where_least_of_it_is_cropped_away(images: list[tuple[int, int]]) -> None:
    config = data(side=1024, max_ratio=4)
    sizes = list_crop_sizes(config)
    widths, heights = np.array(images, np.int32).T
    chosen = choose_crop_sizes(sizes, widths, heights)
    assert [sizes[number] for number in chosen] == [choose_crop_size(config, *image) for image in images]
    shares = np.array([measure_cropped(size.width / size.height, widths, heights) for size in sizes])
    assert shares[chosen, range(len(images))] == pytest.approx(shares.min(0), abs=1e-12)


def test_between_two_sizes_the_mean_of_their_ratios_decides() -> None:
    limit = math.sqrt(576 / 448)
    assert choose_crop_size(data(), round(10_000 * limit) - 1, 10_000) == CropSize(512, 512)
    assert choose_crop_size(data(), round(10_000 * limit) + 1, 10_000) == CropSize(448, 576)
    assert choose_crop_size(data(), 100_000, 1) == CropSize(384, 640)


def test_the_default_grain_is_the_largest_divisor_of_the_batch_up_to_32() -> None:
    assert [choose_grain(data(), batch) for batch in (1, 37, 48, 96, 100, 256)] == [1, 1, 24, 32, 25, 32]
    assert choose_grain(data(grain=7), 256) == 7
    assert choose_grain(DataConfig(images="i"), 256) is None


@pytest.mark.parametrize(
    ("written", "refusal"),
    [
        ("buckets: {side: 500}", "must be a multiple of 8, not 500"),
        ("buckets: {side: 520}", "buckets.side: 520 is no multiple of buckets.step: 64; nearest: 512 and 576"),
        ("buckets: {side: 32}", "buckets.side: 32 is no multiple of buckets.step: 64; nearest: 64"),
        ("buckets: {side: 768}, resolution: 512", "resolution: 512 and buckets.side: 768 are two sizes; leave"),
        ("buckets: {max_ratio: 0.5}", "data.buckets.max_ratio: must be at least 1"),
        ("crops: 3", "crops: 3 counts random crops, and crop: center has one; write crop: random"),
        ("crop: random, crops: 0", "data.crops: must be at least 1"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_place(tmp_path, written: str, refusal: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(f"name: a\nmodel: /m\ndata: {{images: /i, {written}}}\nbatch: 8\n")
    with pytest.raises(UserError) as error:
        load_config(path)
    assert refusal in str(error.value)
    assert str(error.value).startswith(f"{path}:3:")
