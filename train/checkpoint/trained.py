"""The trained denoiser of a checkpoint, for an export: needs no GPU and no ranks, whatever wrote the checkpoint."""

from pathlib import Path
from typing import Any

import torch

from configs.pipelines import PIPELINES, read_pipeline_class
from configs.schema import RunConfig
from store.checkpoint.checkpoints import Checkpoint
from train.engines.base import WEIGHTS, load_parameters
from train.models import MODELS
from train.models.weights import PartWeights

KINDS = {"ema": "ema", "raw": WEIGHTS}  # what people write → the kind of value in the checkpoint


class CheckpointWeights:
    """What `checkpoint` holds under `weights`, a key of KINDS: a `train.engines.base.WeightReader`."""

    def __init__(self, checkpoint: Checkpoint, weights: str):
        self._reader, self._kind = checkpoint.open_reader(), KINDS[weights]
        self.sizes = self._reader.sizes(self._kind)

    def read(self, name: str, offset: int, length: int) -> torch.Tensor:
        """As `WeightReader.read`."""
        return torch.from_numpy(self._reader.read(self._kind, name, offset, length))


def load_denoiser(config: RunConfig, folder: Path, checkpoint: Checkpoint, weights: str) -> Any:
    """The denoiser as it was trained, in fp32; of a run that trains adapters, the one of the pipeline in `folder` with
    the adapters merged into its weights. `weights` is a key of KINDS."""
    class_name = read_pipeline_class(folder / "model_index.json")
    denoiser = MODELS[class_name].make_denoiser(folder)
    trained = CheckpointWeights(checkpoint, weights)
    cpu = torch.device("cpu")
    if config.lora is None:
        load_parameters(denoiser, trained, torch.float32, cpu)
        return denoiser
    from train.models.lora import AdaptedWeights, add_adapters  # peft takes seconds to import

    base = PartWeights(folder / PIPELINES[class_name].trained, denoiser)
    add_adapters(denoiser, config.lora)
    load_parameters(denoiser, AdaptedWeights(denoiser, base, trained), torch.float32, cpu)
    denoiser.fuse_lora()
    denoiser.unload_lora()
    return denoiser
