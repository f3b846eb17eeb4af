"""Where samples come from, one file each: what `data.images` and `data.sources` name."""

from collections.abc import Callable
from pathlib import Path

from configs.schema import SourceConfig, SourceKind
from store.dataset.sources.base import Source
from store.dataset.sources.image_folder import ImageFolder
from store.dataset.sources.tar_shards import TarShards


def _open_parquet(config: SourceConfig, cache_folder: Path) -> Source:
    from store.dataset.sources.parquet import ParquetFiles  # brings pyarrow's reader of parquet

    return ParquetFiles(config.place, config.caption, cache_folder / "images")


# By kind: from the entry of data.sources, and the folder where copies of images may be kept
SOURCES: dict[SourceKind, Callable[[SourceConfig, Path], Source]] = {
    "images": lambda config, _: ImageFolder(Path(config.place), config.caption),
    "parquet": _open_parquet,
    "tars": lambda config, _: TarShards(config.place, config.caption),
}


def make_source(config: SourceConfig, cache_folder: Path) -> Source:
    """The source that an entry of data.sources names; one of the hub is files here by now."""
    return SOURCES[config.kind](config, cache_folder)
