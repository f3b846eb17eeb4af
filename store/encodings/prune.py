"""Removing from the cache what no run has used for long. Whoever needs it again encodes it again."""

import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from store.encodings.family import FamilyFolder, list_path
from store.encodings.maps import EncodingMap, list_chunk_maps, read_chunk_map

UNUSED = 30 * 86400.0  # seconds since a run last opened a map
UNFINISHED = 86400.0  # seconds after which nobody is still writing a file


@dataclass
class Pruned:
    """What was removed of one family."""

    folder: Path
    maps: int = 0
    shards: int = 0
    bytes: int = 0
    refused: list[Path] = field(default_factory=list)  # that are others', and stayed


def prune_encodings(cache_folder: Path) -> Iterator[Pruned]:
    """Family by family: maps that no run has opened for 30 days, and shards that no map names, a day after they were
    written, for a run may be about to. Raises OSError where a folder cannot be listed."""
    for path in sorted(list_path(cache_folder).iterdir()):
        if path.is_dir():
            yield _prune_family(FamilyFolder(path))


def _prune_family(family: FamilyFolder) -> Pruned:
    now, pruned, used = time.time(), Pruned(family.path), set[str]()
    for maps in family.maps_path.iterdir() if family.maps_path.is_dir() else ():
        whole = family.map_path(maps.name)
        found = (whole if whole.exists() else maps).stat()
        if now - max(found.st_mtime, found.st_atime) > UNUSED:  # who may not write there only reads
            size = sum(path.stat().st_size for path in maps.rglob("*") if path.is_file())
            _remove(maps, pruned, size, is_map=True)
        else:
            used |= _list_shards(family, maps.name)
    for shard in family.shards_path.iterdir() if family.shards_path.is_dir() else ():
        try:
            found = shard.stat()
        except FileNotFoundError:  # renamed as it was complete, or pruned by another
            continue
        if shard.name not in used and now - found.st_mtime > UNFINISHED:
            _remove(shard, pruned, found.st_size, is_map=False)
    return pruned


def _list_shards(family: FamilyFolder, map_name: str) -> set[str]:
    """Those that the map of this name needs, whole or not yet."""
    folder = family.chunks_path(map_name)
    names = set[str]()
    for chunk in list_chunk_maps(folder):
        chunk_map = read_chunk_map(folder, chunk)
        names |= set(chunk_map.names) if chunk_map is not None else set()
    if family.map_path(map_name).exists():
        try:
            names |= set(EncodingMap(family.map_path(map_name)).shards)
        except ValueError:  # damaged: it is written anew by the run that opens it
            return names
    return names


def _remove(path: Path, pruned: Pruned, size: int, *, is_map: bool) -> None:
    try:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    except PermissionError:
        pruned.refused.append(path)
        return
    except FileNotFoundError:  # another was quicker
        return
    pruned.maps += is_map
    pruned.shards += not is_map
    pruned.bytes += size
