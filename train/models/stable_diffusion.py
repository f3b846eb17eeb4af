"""Stable Diffusion 1 and 2 (Rombach et al. 2022): a UNet on a VAE's latents, told what to draw by one text encoder.

What differs between the two stands in their parts' own configs, which the libraries read: the text encoder's width,
depth and activation (CLIP ViT-L/14; OpenCLIP ViT-H/14 less its last layer), the token that pads a caption, the UNet's
attention heads and projections, and epsilon or v_prediction.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from numpy.typing import NDArray
from transformers import CLIPTextModel, CLIPTokenizer

from configs.pipelines import LatentShape, check_objective
from configs.schema import RunConfig
from store.encodings.family import digest_files
from train.data.images import Crop
from train.engines.base import DTYPES, WeightReader
from train.models.base import Batch
from train.models.frozen import FrozenPart, merge_rows
from train.models.parts import check_trainable, frozen_pass
from train.models.sampler import load_sampler
from train.models.tokens import tokenize_caption
from train.models.vae import choose_vae_dtype, decode_latents, draw_latents, encode_pixels
from train.models.weights import PartWeights


@dataclass
class StableDiffusion:
    """A `DiffusionModel`. The text encoder is in `dtype`, the VAE too, except in fp16: see `choose_vae_dtype`."""

    folder: Path
    denoiser: UNet2DConditionModel
    weights: WeightReader
    vae_part: FrozenPart
    vae_config: Mapping[str, Any]
    text_part: FrozenPart
    tokenizer: CLIPTokenizer
    noise_scheduler: DDPMScheduler
    dtype: torch.dtype
    chunks: int = 1  # of a caption
    tf32: bool = False  # whether the frozen parts may round fp32 products to it

    @classmethod
    def load(cls, config: RunConfig, folder: Path, device: torch.device) -> Self:
        dtype = DTYPES[config.precision]
        noise_scheduler = DDPMScheduler.from_pretrained(folder, subfolder="scheduler")
        noise_scheduler.register_to_config(prediction_type=check_objective(config, folder))
        overflows = AutoencoderKL.load_config(folder, subfolder="vae").get("force_upcast", True)
        vae_dtype = choose_vae_dtype(config, overflows, device)
        vae = FrozenPart(AutoencoderKL, folder / "vae", device, torch_dtype=vae_dtype)
        options = {"dtype": dtype, "ignore_mismatched_sizes": True}
        text_encoder = FrozenPart(CLIPTextModel, folder / "text_encoder", device, **options)
        if config.data.cached == "off":
            vae.load("to train")
        if config.data.cached != "all":
            text_encoder.load("to train")
        unet = cls.make_denoiser(folder)
        check_trainable(folder / "unet", unet)
        if config.gradient_checkpointing:
            unet.enable_gradient_checkpointing()
        return cls(
            folder=folder,
            denoiser=unet.train(),
            weights=PartWeights(folder / "unet", unet),
            vae_part=vae,
            vae_config=cls.read_vae_config(folder),
            text_part=text_encoder,
            tokenizer=CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer"),
            noise_scheduler=noise_scheduler,
            dtype=dtype,
            chunks=config.data.caption_chunks,
            tf32=device.type == "cuda" and not config.deterministic,
        )

    @staticmethod
    def make_denoiser(folder: Path) -> Any:
        with torch.device("meta"):
            return UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(folder, subfolder="unet"))

    @staticmethod
    def read_vae_config(folder: Path) -> Mapping[str, Any]:
        """With the class's defaults for what the file leaves out."""
        with torch.device("meta"):
            vae = AutoencoderKL.from_config(AutoencoderKL.load_config(folder, subfolder="vae"))
        return dict(vae.config)

    @property
    def vae(self) -> AutoencoderKL:
        return self.vae_part.load("for sample pictures")

    @property
    def text_encoder(self) -> CLIPTextModel:
        return self.text_part.load("for sample pictures")

    @property
    def inputs(self) -> Callable[[str, Crop], dict[str, torch.Tensor]]:
        """`tokens`, (chunks, 77)."""
        return partial(tokenize_caption, self.tokenizer, self.chunks)

    def latent_shape(self, height: int, width: int) -> LatentShape:
        return LatentShape.of_vae(self.vae_config, height, width)

    def moments(self, pixels: torch.Tensor) -> torch.Tensor:
        vae = self.vae_part.load("for an image that is not in it")
        with frozen_pass(self.tf32):
            return encode_pixels(vae, pixels)

    def latents(self, batch: Batch) -> torch.Tensor:
        made = self.moments(batch["pixels"]) if "pixels" in batch else None
        moments = merge_rows(made, batch.get("moments"), batch.get("has_moments"))
        return draw_latents(self.vae_config, moments, batch["posterior"])

    def states(self, batch: Batch) -> torch.Tensor:
        """The text encoder's last hidden states of all chunks, (m, chunks · 77, width)."""
        tokens = batch["tokens"]
        text_encoder = self.text_part.load("for a caption that is not in it")
        with frozen_pass(self.tf32):
            states: torch.Tensor = text_encoder(tokens.flatten(0, 1))[0].to(self.dtype)
        return states.reshape(len(tokens), -1, states.shape[-1])

    def condition(self, batch: Batch) -> dict[str, Any]:
        made = self.states(batch) if "tokens" in batch else None
        return {"encoder_hidden_states": merge_rows(made, batch.get("states"), batch.get("has_states"))}

    def describe_encoder(self, kind: str) -> dict[str, str]:
        if kind == "moments":
            return self.vae_part.describe(self.tf32)
        tokens = {"tokenizer": digest_files(self.folder / "tokenizer", "*"), "chunks": str(self.chunks)}
        return self.text_part.describe(self.tf32) | tokens

    def spare_encoder(self, kind: str) -> None:
        (self.vae_part if kind == "moments" else self.text_part).spare()

    def decode(self, latents: torch.Tensor) -> NDArray[np.uint8]:
        with frozen_pass(self.tf32):
            return decode_latents(self.vae, latents)

    def embed_prompt(self, prompt: str) -> dict[str, torch.Tensor]:
        return {"prompt_embeds": self._read(prompt), "negative_prompt_embeds": self._read("")}

    def _read(self, text: str) -> torch.Tensor:
        """What the UNet is told of one text, (1, chunks · 77, width)."""
        tokens = tokenize_caption(self.tokenizer, self.chunks, text)["tokens"].to(self.text_encoder.device)
        states: torch.Tensor = self.condition({"tokens": tokens[None]})["encoder_hidden_states"]
        return states

    def pipeline(self) -> StableDiffusionPipeline:
        return StableDiffusionPipeline(
            vae=self.vae,
            text_encoder=self.text_encoder,
            tokenizer=self.tokenizer,
            unet=self.denoiser,
            scheduler=load_sampler(self.folder, self.noise_scheduler.config.prediction_type),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
