"""Where samples come from, one file each: what `data.images` and `data.sources` name."""

from collections.abc import Callable
from pathlib import Path

from configs.schema import SourceConfig, SourceKind
from store.dataset.sources.base import Source
from store.dataset.sources.image_folder import ImageFolder

SOURCES: dict[SourceKind, Callable[[SourceConfig], Source]] = {
    "images": lambda config: ImageFolder(Path(config.place), config.caption),
}
