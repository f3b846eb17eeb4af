"""All encodings of a family, found by their keys: what another index, another run or a killed one left is taken up."""

from collections.abc import Mapping

import numpy as np

from store.encodings.family import KEY_BYTES, FamilyFolder
from store.encodings.maps import ShardRow
from store.encodings.shards import DamagedEncoding, Shard, ShardReader


class KnownEncodings:
    """What was there when this was made, and what was added since. `verify`: only what reads whole is known."""

    def __init__(self, folder: FamilyFolder, *, verify: bool = False):
        """Reads the keys of every shard. Raises OSError."""
        self._reader, self._verify = ShardReader(folder.shards_path), verify
        self._names: list[str] = []
        keys, shards = [], []
        for name in sorted(self._reader.list_names()):
            try:
                shard = Shard(folder.shards_path / name)
            except DamagedEncoding as problem:
                print(f"{problem}: what it held is encoded anew", flush=True)
                continue
            keys.append(shard.keys)
            shards.append(np.full(shard.count, len(self._names), np.uint32))
            self._names.append(name)
        rows = [np.arange(len(each), dtype=np.uint32) for each in shards]
        joined = np.frombuffer(b"".join(keys), f"S{KEY_BYTES}")
        order = np.argsort(joined, kind="stable")
        empty = np.empty(0, np.uint32)
        self._keys, self._shards = joined[order], np.concatenate([empty, *shards])[order]
        self._rows = np.concatenate([empty, *rows])[order]
        self._added: dict[bytes, ShardRow] = {}

    def add(self, places: Mapping[bytes, ShardRow]) -> None:
        """What was just written."""
        self._added |= places

    def find(self, key: bytes) -> ShardRow | None:
        """Where the encoding of `key` lies; None where there is none that can be used."""
        if key in self._added:
            return self._added[key]
        first = int(np.searchsorted(self._keys, np.bytes_(key)))
        if first == len(self._keys) or self._keys[first : first + 1].tobytes() != key:
            return None
        place = ShardRow(self._names[self._shards[first]], int(self._rows[first]))
        return place if not self._verify or self.is_whole(key, place) else None

    def is_whole(self, key: bytes, place: ShardRow) -> bool:
        """Whether the encoding of `key` lies there as it was written."""
        try:
            self._reader.read(place.shard, place.row, key)
        except DamagedEncoding as problem:
            print(f"{problem}: it is encoded anew", flush=True)
            return False
        return True
