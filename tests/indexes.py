"""Indexes of image folders for tests, with the images' sizes."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from PIL import Image

from configs.schema import DataConfig
from store.dataset.index import Index
from store.dataset.listing import list_samples
from store.dataset.sample import Sample


def index_images(data: DataConfig) -> Index:
    """What submit's index of the config's image folders holds, in memory."""
    roots = [Path(source.place) for source in data.listed_sources]
    return Index.from_samples(_measure_images(roots), roots)


def _measure_images(roots: list[Path]) -> Iterator[Sample]:
    for number, root in enumerate(roots):
        for sample in list_samples(root).samples:
            with Image.open(root / sample.file) as image:
                yield replace(sample, source=number, width=image.width, height=image.height)
