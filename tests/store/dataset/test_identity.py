"""What makes a run's samples the same samples."""

from pathlib import Path

from configs.schema import DataConfig
from store.dataset.identity import identify_dataset
from store.dataset.index import Index
from store.dataset.sample import Sample

SQUARES, BUCKETS = DataConfig(images="/a"), DataConfig.model_validate({"images": "/a", "buckets": {}})


def index(*sizes: tuple[int, int]) -> Index:
    """Images of as many bytes, whatever their sizes."""
    samples = [
        Sample(0, f"{number}.jpg", f"{number}.jpg", 0, 999, width, height, ("a",))
        for number, (width, height) in enumerate(sizes)
    ]
    return Index.from_samples(samples, [Path("/a")])


def test_an_image_that_was_turned_in_place_is_another_dataset_for_buckets_alone() -> None:
    before, turned = index((640, 480), (500, 500)), index((480, 640), (500, 500))
    assert identify_dataset(SQUARES, before) == before.digest == identify_dataset(SQUARES, turned)
    assert identify_dataset(BUCKETS, before) != identify_dataset(BUCKETS, turned)
    assert identify_dataset(BUCKETS, before) == identify_dataset(BUCKETS, index((320, 240), (500, 501)))


def test_without_buckets_images_of_unknown_size_have_an_identity() -> None:
    assert identify_dataset(SQUARES, index((0, 0))) == index((5, 5)).digest
