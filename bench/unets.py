"""The UNets that are measured: known architectures with random weights, made without a download or a file."""

import zlib
from typing import Any

import torch
from diffusers import UNet2DConditionModel

from configs.known_models import SD1, SD2, SDXL

# What each adds to diffusers' defaults. The widths of small and medium are chosen; the others are as published.
UNETS: dict[str, dict[str, Any]] = {
    "tiny": {
        "block_out_channels": (16, 32),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "mid_block_type": None,
        "layers_per_block": 1,
        "cross_attention_dim": 64,
        "attention_head_dim": 2,
        "norm_num_groups": 4,
    },
    "small": dict(SD1.configs["unet"]) | {"block_out_channels": (96, 192, 320, 320)},
    "medium": dict(SD1.configs["unet"]) | {"block_out_channels": (128, 256, 416, 416)},
    "sd15": dict(SD1.configs["unet"]),
    "sd21": dict(SD2.configs["unet"]),
    "sdxl": dict(SDXL.configs["unet"]),
}
BLOCK = 2**20 + 7  # random numbers that all weights are made of; a prime, so that rows of a matrix differ


def make_unet(name: str, side: int) -> UNet2DConditionModel:
    """The UNet for latents of `side`, to be trained, without weights (on torch's meta device)."""
    with torch.device("meta"):
        return UNet2DConditionModel(side, **UNETS[name]).train()


class RandomWeights:
    """Weights as large as torch's own initialisation makes them, read by ranges; the same in every process."""

    def __init__(self, module: torch.nn.Module):
        self.shapes = {name: parameter.shape for name, parameter in module.named_parameters()}
        self.sizes = {name: shape.numel() for name, shape in self.shapes.items()}
        self._block = torch.rand(BLOCK, generator=torch.Generator().manual_seed(1)) * 2 - 1

    def read(self, name: str, offset: int, length: int) -> torch.Tensor:
        """Elements [offset, offset + length) of the flattened parameter: 1-D, fp32, on the CPU."""
        shape = self.shapes[name]
        if len(shape) == 1:  # norms begin as 1, biases as 0
            return torch.full((length,), float(name.endswith("weight")))
        begin = (zlib.crc32(name.encode()) + offset) % BLOCK
        repeated = self._block.roll(-begin).repeat(-(-length // BLOCK))[:length]
        return repeated / (shape.numel() // shape[0]) ** 0.5


def draw_condition(name: str, samples: int, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """What the UNet is told beside x_t and t, drawn at random; the same in every process."""
    drawn = torch.Generator().manual_seed(3)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(samples, *shape, generator=drawn).to(device, dtype)

    condition: dict[str, Any] = {"encoder_hidden_states": draw(77, UNETS[name]["cross_attention_dim"])}
    if "addition_embed_type" in UNETS[name]:
        condition["added_cond_kwargs"] = {"text_embeds": draw(1280), "time_ids": draw(6)}
    return condition
