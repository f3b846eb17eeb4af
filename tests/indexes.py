"""Indexes of a config's image folders, for tests."""

from pathlib import Path

from configs.schema import DataConfig
from store.dataset.build import build_index
from store.dataset.index import Index
from store.dataset.sources.image_folder import ImageFolder


def index_images(data: DataConfig) -> Index:
    """As submit makes it, in memory."""
    return build_index([ImageFolder(Path(source.place)) for source in data.listed_sources], None).index
