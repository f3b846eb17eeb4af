"""Stable Diffusion XL (Podell et al. 2023): a UNet on a VAE's latents, told what to draw by two text encoders.

It is told of a caption the second-to-last hidden states of both, side by side, and the pooled embedding of the second
one (section 2.1); of an image its size before it was resized, the crop's corner, and the size of what is shown
(section 2.2), each number by itself; here they stay whole numbers, since bf16 knows no size between 1024 and 1032.

Where the pipeline's `force_zeros_for_empty_prompt` says that it draws with zeros in the place of an empty prompt, the
empty caption is zeros in training, too: states and pooled embedding. That is a caption that was dropped or has no
tokens, and no other.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from diffusers import DDPMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from numpy.typing import NDArray
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

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

TOKENIZERS = {"tokens": "tokenizer", "tokens_2": "tokenizer_2"}  # what their tokens are called → their folders
READ_LAYER = -2  # of the hidden states


def read_sizes(crop: Crop) -> dict[str, torch.Tensor]:
    """`time_ids`, (6,): height and width before, top and left of the crop, height and width of what is shown."""
    return {"time_ids": torch.tensor([*crop.original, *crop.corner, *crop.target])}


def read_zero_empty(folder: Path) -> bool:
    """Whether the pipeline in `folder` draws with zeros in the place of an empty prompt, as its index says, or else
    diffusers' default."""
    key = "force_zeros_for_empty_prompt"
    default = signature(StableDiffusionXLPipeline).parameters[key].default
    return bool(StableDiffusionXLPipeline.load_config(folder).get(key, default))


@dataclass
class StableDiffusionXL:
    """A `DiffusionModel`. The text encoders are in `dtype`."""

    folder: Path
    denoiser: UNet2DConditionModel
    weights: WeightReader
    vae: FrozenVae
    text_parts: tuple[FrozenPart, FrozenPart]
    tokenizers: Mapping[str, CLIPTokenizer]  # by what their tokens are called
    zero_empty: bool  # whether the empty caption is zeros
    noise_scheduler: DDPMScheduler
    dtype: torch.dtype
    chunks: int = 1  # of a caption
    tf32: bool = False  # whether the text encoders may round fp32 products to it

    @classmethod
    def load(cls, config: RunConfig, folder: Path, device: torch.device) -> Self:
        unet = prepare_unet(config, folder)
        tokenizers = {name: CLIPTokenizer.from_pretrained(folder, subfolder=part) for name, part in TOKENIZERS.items()}
        return cls(
            folder=folder,
            denoiser=unet,
            weights=PartWeights(folder / "unet", unet, config.variant),
            vae=FrozenVae.for_run(config, folder, device),
            text_parts=(
                FrozenPart.for_text(config, CLIPTextModel, folder / "text_encoder", device),
                FrozenPart.for_text(config, CLIPTextModelWithProjection, folder / "text_encoder_2", device),
            ),
            tokenizers=tokenizers,
            zero_empty=read_zero_empty(folder),
            noise_scheduler=load_noise_scheduler(config, folder),
            dtype=DTYPES[config.precision],
            chunks=config.data.caption_chunks,
            tf32=may_round(config, device),
        )

    @staticmethod
    def make_denoiser(folder: Path) -> Any:
        return make_empty_unet(folder)

    @property
    def read_caption(self) -> Callable[[str], dict[str, torch.Tensor]]:
        """`tokens` and `tokens_2`, (chunks, 77) each: the two tokenizers pad captions with another token."""
        return partial(tokenize_caption, self.tokenizers, self.chunks)

    @property
    def read_crop(self) -> Callable[[Crop], dict[str, torch.Tensor]]:
        return read_sizes

    def latent_shape(self, height: int, width: int) -> LatentShape:
        return self.vae.latent_shape(height, width)

    def moments(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.vae.moments(pixels)

    def latents(self, batch: Batch) -> torch.Tensor:
        return self.vae.latents(batch)

    def states(self, batch: Batch) -> torch.Tensor:
        """One row a caption, (m, chunks · 77 · width + pooled): the hidden states of all chunks and tokens, then the
        pooled embedding, which is the first chunk's. All zeros for the empty caption, where it is zeros."""
        first, second = (part.load("for a caption that is not in it") for part in self.text_parts)
        tokens, tokens_2 = batch["tokens"], batch["tokens_2"]
        with frozen_pass(self.tf32):
            ones = first(tokens.flatten(0, 1), output_hidden_states=True)
            twos = second(tokens_2.flatten(0, 1), output_hidden_states=True)
        hidden = torch.cat([ones.hidden_states[READ_LAYER], twos.hidden_states[READ_LAYER]], dim=-1)
        pooled = twos.text_embeds.unflatten(0, (-1, self.chunks))[:, 0]
        rows = torch.cat([hidden.reshape(len(tokens), -1), pooled], dim=1).to(self.dtype)
        if not self.zero_empty:
            return rows
        return rows.masked_fill(self._find_empty(batch)[:, None], 0.0)

    def condition(self, batch: Batch) -> dict[str, Any]:
        made = self.states(batch) if "tokens" in batch else None
        rows = merge_rows(made, batch.get("states"), batch.get("has_states"))
        told = self._split_rows(rows)
        sizes = {"text_embeds": told["pooled"], "time_ids": batch["time_ids"]}
        return {"encoder_hidden_states": told["states"], "added_cond_kwargs": sizes}

    def describe_encoder(self, kind: str) -> dict[str, str]:
        if kind == "moments":
            return self.vae.describe()
        facts = {"chunks": str(self.chunks), "empty": "zeros" if self.zero_empty else "read"}
        for name, tokenizer in TOKENIZERS.items():
            facts[name] = digest_files(self.folder / tokenizer, "*")
        for part in self.text_parts:
            facts |= {f"{part.folder.name} {fact}": value for fact, value in part.describe(self.tf32).items()}
        return facts

    def spare_encoder(self, kind: str) -> None:
        for part in [self.vae.part] if kind == "moments" else self.text_parts:
            part.spare()

    def decode(self, latents: torch.Tensor) -> NDArray[np.uint8]:
        return self.vae.decode(latents)

    def embed_prompt(self, prompt: str) -> dict[str, torch.Tensor]:
        wanted, empty = self._read(prompt), self._read("")
        return {
            "prompt_embeds": wanted["states"],
            "pooled_prompt_embeds": wanted["pooled"],
            "negative_prompt_embeds": empty["states"],
            "negative_pooled_prompt_embeds": empty["pooled"],
        }

    def pipeline(self) -> StableDiffusionXLPipeline:
        first, second = (part.load("for sample pictures") for part in self.text_parts)
        return StableDiffusionXLPipeline(
            vae=self.vae.module,
            text_encoder=first,
            text_encoder_2=second,
            tokenizer=self.tokenizers["tokens"],
            tokenizer_2=self.tokenizers["tokens_2"],
            unet=self.denoiser,
            scheduler=load_sampler(self.folder, self.noise_scheduler),
            force_zeros_for_empty_prompt=self.zero_empty,
            add_watermarker=False,
        )

    def _read(self, text: str) -> dict[str, torch.Tensor]:
        """What the UNet is told of one text."""
        device = self.text_parts[0].device
        tokens = {name: read[None].to(device) for name, read in self.read_caption(text).items()}
        return self._split_rows(self.states(tokens))

    def _split_rows(self, rows: torch.Tensor) -> dict[str, torch.Tensor]:
        """`rows` of `states` as hidden states, (m, chunks · 77, width), and pooled embedding."""
        width = self.denoiser.config.cross_attention_dim
        length = self.chunks * self.tokenizers["tokens"].model_max_length * width
        return {"states": rows[:, :length].unflatten(1, (-1, width)), "pooled": rows[:, length:]}

    def _find_empty(self, batch: Batch) -> torch.Tensor:
        """Which captions have no tokens at all, (m,)."""
        empty = self.read_caption("")
        same = [(batch[name] == empty[name].to(batch[name].device)).flatten(1).all(1) for name in TOKENIZERS]
        return torch.stack(same).all(0)
