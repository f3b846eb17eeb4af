"""Inputs of any shape to shards: gathered to batches of one shape, encoded, and written before much can be lost."""

import time

import torch
from torch.utils.data import default_collate

from store.encodings.family import FamilyFolder
from store.encodings.maps import ShardRow
from store.encodings.shards import write_shard
from train.data.encodings import SAFETENSORS_DTYPES
from train.encode.encoders import Encoder
from train.models.base import Batch

_NAMES = {dtype: name for name, dtype in SAFETENSORS_DTYPES.items()}
LONGEST = 20.0  # seconds of encoding that a kill may cost


class ShardMaker:
    """For one chunk of samples."""

    def __init__(self, encoder: Encoder, folder: FamilyFolder, device: torch.device):
        self.encoder, self.folder, self.device = encoder, folder, device
        self.places: dict[bytes, ShardRow] = {}  # of what was written
        self._seen: set[bytes] = set()
        self._waiting: dict[object, dict[bytes, Batch]] = {}  # by shape
        self._rows: dict[tuple[str, tuple[int, ...]], list[tuple[bytes, bytes]]] = {}  # by dtype and shape
        self._began = time.monotonic()

    def add(self, key: bytes, inputs: Batch) -> None:
        """Encode `inputs` now or later. Raises OSError where a shard cannot be written."""
        if key in self._seen:  # the same image twice
            return
        self._seen.add(key)
        shape = tuple((name, tuple(value.shape)) for name, value in inputs.items())
        group = self._waiting.setdefault(shape, {})
        group[key] = inputs
        if len(group) == self.encoder.count_batch(inputs):
            self._encode(self._waiting.pop(shape))
        if time.monotonic() - self._began > LONGEST:
            self._write()

    def finish(self) -> dict[bytes, ShardRow]:
        """Encode and write what is left; where all encodings of the chunk lie. Raises OSError."""
        for group in self._waiting.values():
            self._encode(group)
        self._waiting = {}
        self._write()
        return self.places

    def _encode(self, group: dict[bytes, Batch]) -> None:
        """Always of a whole batch, whose last inputs are repeated where there are too few."""
        inputs = list(group.values())
        missing = self.encoder.count_batch(inputs[0]) - len(inputs)
        batch = default_collate(inputs + inputs[-1:] * missing)
        encoded = self.encoder.encode({name: value.to(self.device) for name, value in batch.items()}).cpu()
        kind = (_NAMES[encoded.dtype], tuple(encoded.shape[1:]))
        values = encoded.contiguous().view(torch.uint8).numpy()
        self._rows.setdefault(kind, []).extend((key, row.tobytes()) for key, row in zip(group, values, strict=False))

    def _write(self) -> None:
        for (dtype, shape), rows in self._rows.items():
            name = write_shard(self.folder.shards_path, dtype, shape, rows)
            self.places |= {key: ShardRow(name, number) for number, (key, _) in enumerate(rows)}
        self._rows, self._began = {}, time.monotonic()
