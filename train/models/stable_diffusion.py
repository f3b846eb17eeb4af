"""Stable Diffusion 1 and 2 (Rombach et al. 2022): a UNet on a VAE's latents, told what to draw by one text encoder.

What differs between the two stands in their parts' own configs, which the libraries read: the text encoder's width,
depth and activation (CLIP ViT-L/14; OpenCLIP ViT-H/14 less its last layer), the token that pads a caption, the UNet's
attention heads and projections, and epsilon or v_prediction.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from numpy.typing import NDArray
from transformers import CLIPTextModel, CLIPTokenizer

from configs.pipelines import LatentShape
from configs.schema import RunConfig
from store.encodings.family import digest_files
from train.data.images import Crop
from train.engines.base import DTYPES, WeightReader
from train.models.base import Batch
from train.models.frozen import FrozenPart, merge_rows
from train.models.parts import frozen_pass, may_round
from train.models.schedulers import load_noise_scheduler, load_sampler
from train.models.tokens import tokenize_caption
from train.models.unet import make_empty_unet, prepare_unet
from train.models.vae import FrozenVae
from train.models.weights import PartWeights


def ignore_crop(crop: Crop) -> dict[str, torch.Tensor]:
    """What a model reads of a sample's crop that is told nothing of it."""
    return {}


@dataclass
class StableDiffusion:
    """A `DiffusionModel`. The text encoder is in `dtype`."""

    folder: Path
    denoiser: UNet2DConditionModel
    weights: WeightReader
    vae: FrozenVae
    text_part: FrozenPart
    tokenizer: CLIPTokenizer
    noise_scheduler: DDPMScheduler
    dtype: torch.dtype
    chunks: int = 1  # of a caption
    tf32: bool = False  # whether the text encoder may round fp32 products to it

    @classmethod
    def load(cls, config: RunConfig, folder: Path, device: torch.device) -> Self:
        unet = prepare_unet(config, folder)
        return cls(
            folder=folder,
            denoiser=unet,
            weights=PartWeights(folder / "unet", unet, config.variant),
            vae=FrozenVae.for_run(config, folder, device),
            text_part=FrozenPart.for_text(config, CLIPTextModel, folder / "text_encoder", device),
            tokenizer=CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer"),
            noise_scheduler=load_noise_scheduler(config, folder),
            dtype=DTYPES[config.precision],
            chunks=config.data.caption_chunks,
            tf32=may_round(config, device),
        )

    @staticmethod
    def make_denoiser(folder: Path) -> Any:
        return make_empty_unet(folder)

    @property
    def text_encoder(self) -> CLIPTextModel:
        return self.text_part.load("for sample pictures")

    @property
    def read_caption(self) -> Callable[[str], dict[str, torch.Tensor]]:
        """`tokens`, (chunks, 77)."""
        return partial(tokenize_caption, {"tokens": self.tokenizer}, self.chunks)

    @property
    def read_crop(self) -> Callable[[Crop], dict[str, torch.Tensor]]:
        """Nothing: these UNets are not told."""
        return ignore_crop

    def latent_shape(self, height: int, width: int) -> LatentShape:
        return self.vae.latent_shape(height, width)

    def moments(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.vae.moments(pixels)

    def latents(self, batch: Batch) -> torch.Tensor:
        return self.vae.latents(batch)

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
            return self.vae.describe()
        tokens = {"tokenizer": digest_files(self.folder / "tokenizer", "*"), "chunks": str(self.chunks)}
        return self.text_part.describe(self.tf32) | tokens

    def spare_encoder(self, kind: str) -> None:
        (self.vae.part if kind == "moments" else self.text_part).spare()

    def decode(self, latents: torch.Tensor) -> NDArray[np.uint8]:
        return self.vae.decode(latents)

    def embed_prompt(self, prompt: str) -> dict[str, torch.Tensor]:
        return {"prompt_embeds": self._read(prompt), "negative_prompt_embeds": self._read("")}

    def _read(self, text: str) -> torch.Tensor:
        """What the UNet is told of one text, (1, chunks · 77, width)."""
        tokens = self.read_caption(text)["tokens"].to(self.text_encoder.device)
        states: torch.Tensor = self.condition({"tokens": tokens[None]})["encoder_hidden_states"]
        return states

    def pipeline(self) -> StableDiffusionPipeline:
        return StableDiffusionPipeline(
            vae=self.vae.module,
            text_encoder=self.text_encoder,
            tokenizer=self.tokenizer,
            unet=self.denoiser,
            scheduler=load_sampler(self.folder, self.noise_scheduler),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
