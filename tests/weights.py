"""Weights to begin with, for tests and measurements whose module is no folder's."""

import torch


class ModuleWeights:
    """A `train.engines.base.WeightReader` of a module that has weights: a copy of them, as they are now."""

    def __init__(self, module: torch.nn.Module):
        self._whole = {name: value.detach().float().flatten().clone() for name, value in module.state_dict().items()}
        self.sizes = {name: value.numel() for name, value in self._whole.items()}

    def read(self, name: str, offset: int, length: int) -> torch.Tensor:
        return self._whole[name].narrow(0, offset, length)
