"""What is encoded of a sample, and by what: images by the VAE, captions by the text encoders."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from configs.errors import UserError
from configs.schema import DataConfig, RunConfig
from configs.solve.buckets import CropSize, choose_crop_size, choose_crop_sizes, list_crop_sizes
from configs.solve.device_memory import VAE_SLICE_PIXELS
from store.dataset.bad_samples import check_machine
from store.dataset.index import Index
from store.dataset.sample import Sample
from store.encodings.family import KEY_BYTES, Family, find_map_name, make_key, name_map
from store.encodings.known import KnownEncodings
from store.encodings.maps import SampleContent
from train.data.crops import list_crops
from train.data.encodings import View, make_moments_key, make_states_key
from train.data.images import load_crop
from train.models.base import Batch, DiffusionModel

DECODER = 1  # to be raised where this version makes other pixels of the same file than the last one
BATCH = 8  # of one pass, always as many: kernels sum in another order for other counts, and other bits come of it

_NO_CONTENT = SampleContent(None, None)


@dataclass(frozen=True)
class SampleInputs:
    """What is to be encoded of one sample: its image's content, and by its key each input that is not known yet, else
    None."""

    content: SampleContent
    inputs: Mapping[bytes, Batch | None]


class Encoder(Protocol):
    """One kind of encodings, for the samples of one index."""

    kind: str  # moments or states
    noun: str  # what is encoded, for a person
    family: Family
    map_name: str
    threads: int  # that may read at once
    order: NDArray[np.intp] | None  # in which samples are encoded; None: as the index has them

    def read(self, number: int, known: KnownEncodings) -> SampleInputs:
        """Of sample `number`. Raises UserError where it is bad and the run does not skip bad samples."""
        ...

    def count_batch(self, inputs: Batch) -> int:
        """How many of this shape are encoded in one pass."""
        ...

    def encode(self, batch: Batch) -> torch.Tensor: ...


class ImageEncoder:
    """Every view of an image that training may show, to moments."""

    kind, noun = "moments", "images"

    def __init__(self, config: RunConfig, model: DiffusionModel, index: Index, threads: int, facts: Mapping[str, str]):
        self.data, self.model, self.index, self.threads = config.data, model, index, threads
        self.seed = config.seed
        self.order = _sort_by_size(config.data, index)
        decoder = {"decoder": f"{DECODER}, Pillow {version('pillow').partition('.')[0]}"}
        facts = {**facts, **decoder, "background": self.data.background}
        self.family = Family(self.kind, facts, {"model": config.model})
        self.map_name = find_map_name(config, index.version)

    def read(self, number: int, known: KnownEncodings) -> SampleInputs:
        sample = self.index[number]
        path = self.index.path_of(sample)
        stamp = make_key(sample.stamp, str(path), sample.name) if sample.stamp else None
        digest = None if stamp is None else known.find_digest(stamp)
        if digest is not None:
            keys = self._list_keys(sample, digest)
            if all(known.find(key) is not None for key in keys):  # the image need not be read again
                return SampleInputs(SampleContent(stamp, digest), dict.fromkeys(keys))
        try:
            with self.index.open(sample) as file:
                content = file.read()
        except OSError as error:
            return self._leave_out(path, error)
        digest = hashlib.sha256(content).digest()[:KEY_BYTES]
        keys = self._list_keys(sample, digest)
        unknown = {key: view for key, view in keys.items() if known.find(key) is None}
        try:
            loaded = {key: self._load(content, view) for key, view in unknown.items()}
        except Exception as error:  # noqa: BLE001  (Pillow raises nearly anything)
            return self._leave_out(path, error)
        return SampleInputs(SampleContent(stamp, digest), {key: loaded.get(key) for key in keys})

    def _list_keys(self, sample: Sample, digest: bytes) -> dict[bytes, View]:
        """Of all views that training may show of an image with this digest."""
        return {make_moments_key(digest, view): view for view in list_views(self.data, self.seed, sample)}

    def _leave_out(self, path: Path, error: Exception) -> SampleInputs:
        """Of a bad sample nothing is encoded. Where they are skipped, the stream says so when it comes to it."""
        check_machine(path, error)
        if self.data.on_bad_sample == "error":
            cure = "fix or remove it, or write data.on_bad_sample: skip"
            raise UserError(f"{path}: does not decode ({error}); {cure}") from None
        return SampleInputs(_NO_CONTENT, {})

    def _load(self, content: bytes, view: View) -> Batch:
        pixels, _ = load_crop(BytesIO(content), self.data, CropSize(view.height, view.width), view.crop_at, view.flip)
        return {"pixels": torch.from_numpy(pixels)}

    def count_batch(self, inputs: Batch) -> int:
        pixels = inputs["pixels"].shape[-1] * inputs["pixels"].shape[-2]
        return max(2, min(BATCH, VAE_SLICE_PIXELS // pixels))

    def encode(self, batch: Batch) -> torch.Tensor:
        return self.model.moments(batch["pixels"])


class CaptionEncoder:
    """Every caption of a sample, and with the first sample the empty one, to the text encoders' states."""

    kind, noun, threads = "states", "captions", 0  # tokenizers are not made for threads
    order: NDArray[np.intp] | None = None

    def __init__(self, config: RunConfig, model: DiffusionModel, index: Index, facts: Mapping[str, str]):
        self.model, self.index = model, index
        self.family = Family(self.kind, facts, {"model": config.model})
        self.map_name = name_map(index.digest, [])

    def read(self, number: int, known: KnownEncodings) -> SampleInputs:
        sample = self.index[number]
        inputs: dict[bytes, Batch | None] = {}
        for caption in (*sample.captions, *([""] if number == 0 else [])):
            tensors = self.model.read_caption(caption)
            key = make_states_key(tensors)
            inputs[key] = None if known.find(key) is not None else tensors
        return SampleInputs(_NO_CONTENT, inputs)

    def count_batch(self, inputs: Batch) -> int:
        return BATCH

    def encode(self, batch: Batch) -> torch.Tensor:
        return self.model.states(batch)


def list_views(data: DataConfig, seed: int, sample: Sample) -> Iterator[View]:
    """All that training may show of a sample."""
    size = choose_crop_size(data, sample.width, sample.height)
    for crop_at in list_crops(data, seed, sample.name):
        for mirrored in (False, True) if data.flip else (False,):
            yield View(*size, crop_at, mirrored)


def _sort_by_size(data: DataConfig, index: Index) -> NDArray[np.intp] | None:
    """With buckets those of one size one after the other: a batch has one size, and so has a shard."""
    sizes = list_crop_sizes(data)
    if len(sizes) == 1:
        return None
    return np.argsort(choose_crop_sizes(sizes, index.widths, index.heights), kind="stable")
