"""Indexes of a config's data, for tests."""

from pathlib import Path

from configs.schema import DataConfig
from store.dataset.build import build_index
from store.dataset.index import Index
from store.dataset.sources import make_source


def index_images(data: DataConfig, cache_folder: Path = Path()) -> Index:
    """As submit makes it, in memory. `cache_folder` gets copies of parquet images."""
    return build_index([make_source(source, cache_folder) for source in data.listed_sources], None).index
