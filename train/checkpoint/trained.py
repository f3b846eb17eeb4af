"""The trained denoiser of a checkpoint, for an export: needs no GPU and no ranks, whatever wrote the checkpoint."""

from pathlib import Path
from typing import Any

import torch

from configs.model_folder import read_pipeline_class
from configs.pipelines import PIPELINES
from configs.schema import RunConfig
from store.checkpoint.checkpoints import Checkpoint
from train.checkpoint.cast import cast_weight
from train.engines.base import DTYPES, WEIGHTS, load_parameters, replace_parameters
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
    """The denoiser as it was trained, in the config's `export_dtype`; of a run that trains adapters, the one of the
    pipeline in `folder` with the adapters merged into its weights. `weights` is a key of KINDS.

    Raises UserError where a weight has no place in that dtype.
    """
    class_name = read_pipeline_class(folder / "model_index.json")
    denoiser = MODELS[class_name].make_denoiser(folder)
    trained, cpu, dtype = CheckpointWeights(checkpoint, weights), torch.device("cpu"), DTYPES[config.export_dtype]
    if config.lora is None:
        load_parameters(denoiser, trained, torch.float32, cpu)
    else:
        from train.models.lora import AdaptedWeights, add_adapters  # peft takes seconds to import

        base = PartWeights(folder / PIPELINES[class_name].trained, denoiser, config.variant)
        add_adapters(denoiser, config.lora)
        load_parameters(denoiser, AdaptedWeights(denoiser, base, trained), torch.float32, cpu)
        denoiser.fuse_lora()
        denoiser.unload_lora()
    replace_parameters(denoiser, lambda name, values: cast_weight(name, values.detach(), dtype))
    return denoiser
