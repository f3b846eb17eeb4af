"""The blocks that a denoiser repeats: what FSDP2 shards, and torch.compile compiles, one at a time."""

import torch

_CLASSES = ("ResnetBlock2D", "BasicTransformerBlock")  # diffusers'


def find_blocks(denoiser: torch.nn.Module) -> list[torch.nn.Module]:
    """The repeated blocks of `denoiser`, in its order; none lies inside another."""
    return [module for module in denoiser.modules() if type(module).__name__ in _CLASSES]
