"""What the stream takes from the cache of encodings in the place of pixels and captions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch.utils.data import default_collate

from store.encodings.family import FamilyFolder, make_key
from store.encodings.maps import EncodingMap
from store.encodings.shards import DamagedEncoding, Encoding, ShardReader

SAFETENSORS_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}  # by safetensors' names


class View(NamedTuple):
    """What is shown of an image: a part of it, at some size, mirrored or not."""

    height: int
    width: int
    crop_at: tuple[float, float]  # x and y as fractions of the free room
    flip: bool


def make_moments_key(content: bytes, view: View) -> bytes:
    """`content`: the digest of the image file's bytes, as a map of encodings has it."""
    return make_key(content, *view)


def make_states_key(inputs: Mapping[str, torch.Tensor]) -> bytes:
    """`inputs`: what a model reads of one caption."""
    content = b"".join(value.contiguous().numpy().tobytes() for _, value in sorted(inputs.items()))
    return make_key(content, *((name, str(value.dtype), *value.shape) for name, value in sorted(inputs.items())))


class KeptEncodings:
    """The encodings of one kind for the samples of one index. Worker processes get a copy of it."""

    def __init__(self, folder: FamilyFolder, map_name: str):
        """Raises OSError or ValueError where there is no whole map."""
        self.map = EncodingMap(folder.map_path(map_name))
        self.reader = ShardReader(folder.shards_path)
        self._warned = False

    def find(self, key: bytes) -> torch.Tensor | None:
        """The encoding of `key`; None where it is not there or damaged, which is told once: it is made anew."""
        place = self.map.find(key)
        if place is None:
            return None
        try:
            return make_tensor(self.reader.read(place.shard, place.row, key))
        except DamagedEncoding as problem:
            if not self._warned:
                cure = "what is damaged is encoded anew at each use; lockstep cache CONFIG mends it"
                print(f"{problem}: {cure}", flush=True)
            self._warned = True
            return None


@dataclass(frozen=True)
class Encodings:
    """What is cached of a run's samples; None is nothing."""

    moments: KeptEncodings | None = None
    states: KeptEncodings | None = None

    def find_moments(self, sample: int, view: View) -> torch.Tensor | None:
        """Those of sample number `sample` of the index, (2·C, h, w)."""
        content = self.moments.map.content_at(sample) if self.moments is not None else None
        if self.moments is None or content is None:
            return None
        return self.moments.find(make_moments_key(content, view))

    def find_states(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor | None:
        """Those of a caption, given what the model reads of it."""
        return None if self.states is None else self.states.find(make_states_key(inputs))


NOTHING_KEPT = Encodings()


def make_tensor(encoding: Encoding) -> torch.Tensor:
    """On its own memory, without a copy."""
    return torch.frombuffer(encoding.values, dtype=SAFETENSORS_DTYPES[encoding.dtype]).reshape(encoding.shape)


def collate_samples(samples: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """A micro-batch of `samples`. Where only some have moments or states, it holds the rows of these and of the others
    by themselves, each in their order, and `has_moments` or `has_states`, (m,), which says whose they are."""
    keys = dict.fromkeys(key for sample in samples for key in sample)
    batch = {key: default_collate([sample[key] for sample in samples if key in sample]) for key in keys}
    for kind in ("moments", "states"):
        if kind in batch and len(batch[kind]) < len(samples):
            batch[f"has_{kind}"] = torch.tensor([kind in sample for sample in samples])
    return batch
