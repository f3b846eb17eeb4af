"""Where samples come from, one file each: what `data.images` and `data.sources` name."""

from collections.abc import Callable
from pathlib import Path

from configs.schema import SourceConfig, SourceKind
from store.dataset.sources.base import Source
from store.dataset.sources.image_folder import ImageFolder

# By kind: from the entry of data.sources, and the folder where copies of images may be kept
SOURCES: dict[SourceKind, Callable[[SourceConfig, Path], Source]] = {
    "images": lambda config, _: ImageFolder(Path(config.place), config.caption),
}


def make_source(config: SourceConfig, cache_folder: Path) -> Source:
    """The source that an entry of data.sources names."""
    return SOURCES[config.kind](config, cache_folder)
