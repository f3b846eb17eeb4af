"""The index of a config's dataset, for people who wait for it."""

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from configs.errors import UserError
from configs.schema import RunConfig
from launcher.hub.fetch import resolve_source
from store.dataset.build import build_index
from store.dataset.kept_index import KeptIndex, is_index_current, name_index_folder, open_newest_index
from store.dataset.sources import make_source
from store.dataset.sources.base import CopyingSource, Source

if TYPE_CHECKING:
    from rich.progress import Progress

_QUIET = 1.0  # seconds after which a person wonders what is going on
_BETWEEN_LINES = 60.0  # seconds, where nobody sees a bar


def index_dataset(config: RunConfig) -> KeptIndex:
    """The index of the dataset as it is now, kept in the cache folder: what a run trains on.

    Raises UserError where a source cannot be listed, or the cache folder cannot be written.
    """
    sources, folder = _find_folder(config, fetch=True)
    return _build(config, sources, folder)


def plan_dataset(config: RunConfig) -> KeptIndex:
    """As `index_dataset`, less exact and quicker where there is an index: an image that was written over since is not
    noticed. Writes nothing where the folder of runs has no folder to be in, as for another machine's config."""
    sources, folder = _find_folder(config, fetch=False)
    kept = open_newest_index(folder)
    if kept is not None and is_index_current(kept):
        _check_sources(config, kept)
        return kept
    return _build(config, sources, folder if _may_write(config.cache_folder) else None)


@dataclass(frozen=True)
class UncopiedDataset:
    """A dataset whose parquet files are not copied yet, so that its index cannot be built without writing them."""

    source_sizes: list[int]  # samples, good and bad
    size: int  # of the images to be copied, in bytes
    folder: Path  # where they are copied to


def find_uncopied(config: RunConfig) -> UncopiedDataset | None:
    """What submit would copy before it builds the index; None where that is nothing. Writes nothing."""
    if all(source.kind not in ("parquet", "hub") for source in config.data.listed_sources):
        return None
    sources, _ = _find_folder(config, fetch=False)
    copying = [source for source in sources if isinstance(source, CopyingSource)]
    size = sum(source.count_bytes_to_copy() for source in copying)
    if not size:
        return None
    return UncopiedDataset([_count_samples(source, config) for source in sources], size, copying[0].root)


def _count_samples(source: Source, config: RunConfig) -> int:
    """Of a source alone, whose index is kept for the next plan."""
    if isinstance(source, CopyingSource):
        return source.count_samples()
    folder = name_index_folder(config.cache_folder, source.identity, config.data.check)
    return len(build_index([source], folder if _may_write(config.cache_folder) else None).index)


def _find_folder(config: RunConfig, *, fetch: bool) -> tuple[list[Source], Path]:
    """The sources, and where their indexes are kept. fetch: from the hub, where it has newer ones."""
    resolved = [resolve_source(source, fetch=fetch) for source in config.data.listed_sources]
    sources = [make_source(source, config.cache_folder) for source in resolved]
    identities = [source.identity for source in sources]
    return sources, name_index_folder(config.cache_folder, *identities, config.data.check)


def _build(config: RunConfig, sources: Sequence[Source], folder: Path | None) -> KeptIndex:
    with _Waiting() as waiting:
        for source in sources:
            if isinstance(source, CopyingSource):
                source.progress = waiting.show_copies
        kept = build_index(sources, folder, waiting.show, decode=config.data.check == "full")
    _check_sources(config, kept)
    return kept


def _check_sources(config: RunConfig, kept: KeptIndex) -> None:
    """Raises UserError for one of several sources that adds nothing: its repeats would be of nothing."""
    if not len(kept.index):
        return  # whoever trains on it says so
    for number, (source, size) in enumerate(zip(config.data.listed_sources, kept.index.source_sizes, strict=True)):
        if size == 0:
            bad = [one.problem for one in kept.bad_samples if one.source == number]
            why = f"; the first bad one: {bad[0]}" if bad else ""
            raise UserError(f"{source.place}: holds no good sample{why}; correct it, or remove it from data.sources")


def _may_write(cache_folder: Path) -> bool:
    """Whether the folder can be made or written here, with at most the folder of runs around it."""
    nearest = next((path for path in (cache_folder, *cache_folder.parents[:2]) if path.exists()), None)
    return nearest is not None and os.access(nearest, os.W_OK | os.X_OK)


class _Waiting:
    """A bar on a terminal, a line every minute anywhere else; nothing where it is over at once."""

    def __init__(self) -> None:
        self._shown = time.monotonic() + (_QUIET if sys.stderr.isatty() else _BETWEEN_LINES)
        self._bar: Progress | None = None

    def __enter__(self) -> "_Waiting":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, done: int, total: int | None) -> None:
        """`total` is None while nobody knows how many there are."""
        self._show("listing the dataset" if total is None else "indexing the dataset", done, total)

    def show_copies(self, done: int, total: int) -> None:
        """Of bytes of images."""
        self._show("copying images, MiB", done >> 20, total >> 20)

    def _show(self, what: str, done: int, total: int | None) -> None:
        now = time.monotonic()
        if now < self._shown:
            return
        if sys.stderr.isatty():
            self._shown = now + 0.1
            self._draw(what, done, total)
        else:
            self._shown = now + _BETWEEN_LINES
            print(f"{what}: {done:,}{'' if total is None else f' of {total:,}'}", file=sys.stderr, flush=True)

    def _draw(self, what: str, done: int, total: int | None) -> None:
        if self._bar is None:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self._bar.add_task(what)
            self._bar.start()
        self._bar.update(self._bar.task_ids[0], description=what, completed=done, total=total)
