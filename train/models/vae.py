"""The frozen VAE of a pipeline: pixels to latents and back (Rombach et al. 2022, section 3.1)."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from diffusers import AutoencoderKL
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from numpy.typing import NDArray

from configs.pipelines import LatentShape
from configs.schema import RunConfig
from configs.solve.device_memory import count_vae_slices
from train.data.images import scale_pixels
from train.engines.base import DTYPES
from train.models.base import Batch
from train.models.frozen import FrozenPart, merge_rows
from train.models.parts import frozen_pass, may_round


@dataclass
class FrozenVae:
    """The VAE of a pipeline folder, in the dtype of `choose_vae_dtype`: what a `DiffusionModel` does with it."""

    part: FrozenPart
    config: Mapping[str, Any]  # with the class's defaults for what its file leaves out
    tf32: bool = False

    @classmethod
    def for_run(cls, config: RunConfig, folder: Path, device: torch.device) -> Self:
        """Of the pipeline in `folder`; loaded now where the run caches nothing. Raises UserError where it is not
        whole."""
        with torch.device("meta"):
            settings = dict(AutoencoderKL.from_config(AutoencoderKL.load_config(folder, subfolder="vae")).config)
        dtype = choose_vae_dtype(config, settings["force_upcast"], device)
        part = FrozenPart(AutoencoderKL, folder / "vae", device, config.variant, torch_dtype=dtype)
        if config.data.cached == "off":
            part.load("to train")
        return cls(part, settings, may_round(config, device))

    @property
    def module(self) -> AutoencoderKL:
        """For whoever draws pictures."""
        return self.part.load("for sample pictures")

    def latent_shape(self, height: int, width: int) -> LatentShape:
        return LatentShape.of_vae(self.config, height, width)

    def moments(self, pixels: torch.Tensor) -> torch.Tensor:
        vae = self.part.load("for an image that is not in it")
        with frozen_pass(self.tf32):
            return encode_pixels(vae, pixels)

    def latents(self, batch: Batch) -> torch.Tensor:
        made = self.moments(batch["pixels"]) if "pixels" in batch else None
        moments = merge_rows(made, batch.get("moments"), batch.get("has_moments"))
        return draw_latents(self.config, moments, batch["posterior"])

    def describe(self) -> dict[str, str]:
        """All that decides what `moments` are of pixels. Raises OSError."""
        return self.part.describe(self.tf32)

    def decode(self, latents: torch.Tensor) -> NDArray[np.uint8]:
        with frozen_pass(self.tf32):
            return decode_latents(self.module, latents)


def choose_vae_dtype(config: RunConfig, force_upcast: bool, device: torch.device) -> torch.dtype:
    """That of the passes, except for fp16, in which the VAEs that come with `force_upcast` overflow: bf16 on a GPU that
    has it, else fp32."""
    if config.precision != "fp16":
        return DTYPES[config.precision]
    if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16
    return torch.float32 if force_upcast else torch.float16


def encode_pixels(vae: Any, pixels: torch.Tensor) -> torch.Tensor:
    """The posterior's moments, mean and logarithm of the variance: (m, 2·C, h, w), in the VAE's dtype.

    `pixels` are uint8, (m, 3, H, W). They are encoded in slices: of a large micro-batch the encoder would hold more
    than the UNet does with gradient checkpointing.
    """
    samples, _, height, width = pixels.shape
    moments = []
    for part in pixels.tensor_split(count_vae_slices(samples, height * width)):
        # Channels last, which convolutions on CPUs take 12 to 19 % less time for.
        images = scale_pixels(part).to(vae.dtype, memory_format=torch.channels_last)
        moments.append(vae.encode(images).latent_dist.parameters)
    return torch.cat(moments).contiguous()


def draw_latents(config: Mapping[str, Any], moments: torch.Tensor, posterior: torch.Tensor) -> torch.Tensor:
    """One draw of the posterior, mean + std × `posterior`, scaled to about unit variance: (m, C, h, w), fp32.

    `config` is the VAE's.
    """
    drawn_from = DiagonalGaussianDistribution(moments)
    drawn = drawn_from.mean.float() + drawn_from.std.float() * posterior
    scaled: torch.Tensor = (drawn - (config["shift_factor"] or 0.0)) * config["scaling_factor"]
    return scaled


def decode_latents(vae: Any, latents: torch.Tensor) -> NDArray[np.uint8]:
    """Images (m, H, W, 3) of latents (m, C, h, w)."""
    shift = vae.config.shift_factor or 0.0
    unscaled = latents.to(vae.dtype) / vae.config.scaling_factor + shift
    pixels = vae.decode(unscaled).sample.float()
    levels = ((pixels / 2 + 0.5).clamp(0, 1) * 255).round().byte()
    images: NDArray[np.uint8] = levels.permute(0, 2, 3, 1).cpu().numpy()
    return images
