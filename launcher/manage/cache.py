"""`lockstep cache --prune`: what no run has used for long is removed."""

from collections.abc import Iterator
from pathlib import Path

from configs.errors import UserError
from launcher.format import format_count, format_size
from store.encodings.family import list_path
from store.encodings.prune import prune_encodings


def prune_cache(cache_folder: Path) -> Iterator[str]:
    """A line for each family of encodings. Raises UserError where there is no cache."""
    if not list_path(cache_folder).is_dir():
        raise UserError(f"{cache_folder}: holds no encodings; name a config, or its data.cache_folder")
    for pruned in prune_encodings(cache_folder):
        maps, shards = format_count(pruned.maps, "map"), format_count(pruned.shards, "shard")
        yield f"{pruned.folder.name}: removed {maps} and {shards}, {format_size(pruned.bytes)}"
        if pruned.refused:
            count = format_count(len(pruned.refused), "file")
            owner = pruned.refused[0].owner()
            yield f"{pruned.folder.name}: left {count} that you may not remove, such as {pruned.refused[0]} ({owner}'s)"
