"""Weights to begin with, for tests and measurements whose module is no folder's, and those that a folder has."""

from pathlib import Path

import torch
from safetensors import safe_open


class ModuleWeights:
    """A `train.engines.base.WeightReader` of a module that has weights: a copy of them, as they are now."""

    def __init__(self, module: torch.nn.Module):
        self._whole = {name: value.detach().float().flatten().clone() for name, value in module.state_dict().items()}
        self.sizes = {name: value.numel() for name, value in self._whole.items()}

    def read(self, name: str, offset: int, length: int) -> torch.Tensor:
        return self._whole[name].narrow(0, offset, length)


def read_part_weights(pipeline: Path) -> dict[str, torch.Tensor]:
    """Every tensor in the files of every part of a folder."""
    tensors = {}
    for file in pipeline.glob("*/*.safetensors"):
        with safe_open(file, framework="pt") as opened:
            tensors |= {f"{file.parent.name}: {name}": opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    return tensors
