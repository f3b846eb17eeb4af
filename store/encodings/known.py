"""All encodings of a family, found by their keys: what another index, another run or a killed one left is taken up."""

from collections.abc import Iterable, Mapping
from contextlib import suppress

import numpy as np

from store.encodings.family import KEY_DTYPE, FamilyFolder
from store.encodings.maps import EncodingMap, ShardRow
from store.encodings.shards import DamagedEncoding, Shard, ShardReader


class KnownEncodings:
    """What was there when this was made, and what was added since. `verify`: only what reads whole is known."""

    def __init__(self, folder: FamilyFolder, *, verify: bool = False):
        """Reads the keys of every shard. Raises OSError."""
        self._reader, self._verify = ShardReader(folder.shards_path), verify
        self._names: list[str] = []
        keys, shards = [], []
        for name in _sort_newest_first(folder, self._reader.list_names()):  # what was damaged was written anew
            try:
                shard = Shard(folder.shards_path / name)
                keys.append(shard.read_keys())
            except DamagedEncoding as problem:
                print(f"{problem}: what it held is encoded anew", flush=True)
                continue
            shards.append(np.full(shard.count, len(self._names), np.uint32))
            self._names.append(name)
        rows = [np.arange(len(each), dtype=np.uint32) for each in shards]
        joined = np.frombuffer(b"".join(keys), KEY_DTYPE)
        order = np.argsort(joined, kind="stable")
        empty = np.empty(0, np.uint32)
        self._keys, self._shards = joined[order], np.concatenate([empty, *shards])[order]
        self._rows = np.concatenate([empty, *rows])[order]
        self._added: dict[bytes, ShardRow] = {}
        self._contents = _KnownContents(folder)

    def add(self, places: Mapping[bytes, ShardRow]) -> None:
        """What was just written."""
        self._added |= places

    def find(self, key: bytes) -> ShardRow | None:
        """Where the encoding of `key` lies; None where there is none that can be used."""
        if key in self._added:
            return self._added[key]
        at = int(np.searchsorted(self._keys, np.bytes_(key)))
        while at < len(self._keys) and self._keys[at : at + 1].tobytes() == key:
            place = ShardRow(self._names[self._shards[at]], int(self._rows[at]))
            if not self._verify or self.is_whole(key, place):
                return place
            at += 1
        return None

    def find_digest(self, stamp: bytes) -> bytes | None:
        """Of the bytes of the image with this stamp, where an earlier version of an index had it."""
        return self._contents.find(stamp)

    def is_whole(self, key: bytes, place: ShardRow) -> bool:
        """Whether the encoding of `key` lies there as it was written."""
        try:
            self._reader.read(place.shard, place.row, key)
        except DamagedEncoding as problem:
            print(f"{problem}: it is encoded anew", flush=True)
            return False
        return True


def _sort_newest_first(folder: FamilyFolder, names: Iterable[str]) -> list[str]:
    times = {name: (folder.shards_path / name).stat().st_mtime_ns for name in names}
    return sorted(times, key=lambda name: (-times[name], name))


class _KnownContents:
    """The digests of images that were read before, in the newest map: of a new version of an index, only what is new
    need be read again."""

    def __init__(self, folder: FamilyFolder):
        self._stamps, self._digests = np.empty(0, KEY_DTYPE), np.empty(0, KEY_DTYPE)
        paths = {path: path.stat().st_mtime_ns for path in folder.maps_path.glob("*/map.safetensors")}
        if paths:
            with suppress(OSError, ValueError):  # what is not whole is not known
                self._stamps, self._digests = EncodingMap(max(paths, key=paths.__getitem__)).read_contents()
        self._order = np.argsort(self._stamps)

    def find(self, stamp: bytes) -> bytes | None:
        """The digest of the image with this stamp, where it is known."""
        at = int(np.searchsorted(self._stamps, np.bytes_(stamp), sorter=self._order))
        if at == len(self._order):
            return None
        row = self._order[at : at + 1]
        digest: bytes = self._digests[row].tobytes()
        return digest if self._stamps[row].tobytes() == stamp and any(digest) else None
