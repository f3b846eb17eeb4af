"""The other side of bench/peer.py: a fine-tuning script as one writes it with accelerate and diffusers.

What it does per step is what diffusers' text-to-image example does with its default options and an EMA: decode and crop
in workers, tokens per batch, frozen VAE and text encoder in the passes' dtype, fp32 weights (under autocast where the
precision is lower), the loss fetched at every step, clipping, AdamW, EMAModel. Argument: options as JSON.
"""

import json
import random
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from transformers import CLIPTextModel, CLIPTokenizer

from bench.turns import Turns

DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class CaptionedImages(Dataset):
    """An image folder with metadata.jsonl: pixels (3, R, R) in [-1, 1], and the caption."""

    def __init__(self, folder: Path, resolution: int):
        self.folder, self.resolution = folder, resolution
        self.rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, str]:
        row = self.rows[index]
        with Image.open(self.folder / row["file_name"]) as image:
            return transform_image(image, self.resolution), row["text"]


def transform_image(image: Image.Image, side: int) -> torch.Tensor:
    """The middle square, mirrored half the time: (3, side, side) in [-1, 1]."""
    image = image.convert("RGB")
    scale = side / min(image.size)
    size = [max(side, round(length * scale)) for length in image.size]
    image = image.resize(size, Image.Resampling.LANCZOS)
    left, top = ((length - side) // 2 for length in size)
    image = image.crop((left, top, left + side, top + side))
    if random.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float() / 127.5 - 1.0


class Collate:
    """Samples → one batch, with tokens."""

    def __init__(self, tokenizer: CLIPTokenizer):
        self.tokenizer = tokenizer

    def __call__(self, samples: list[tuple[torch.Tensor, str]]) -> dict[str, torch.Tensor]:
        pixels, captions = zip(*samples, strict=True)
        length = self.tokenizer.model_max_length
        encoded = self.tokenizer(
            list(captions), max_length=length, padding="max_length", truncation=True, return_tensors="pt"
        )
        return {"pixels": torch.stack(pixels).contiguous(), "tokens": encoded.input_ids}


class Usual:
    """Everything one step needs."""

    def __init__(self, args: SimpleNamespace):
        folder = Path(args.model)
        mixed = {"fp32": "no"}.get(args.precision, args.precision)
        self.accelerator = Accelerator(mixed_precision=mixed, cpu=args.device == "cpu")
        device, self.dtype = self.accelerator.device, DTYPES[mixed]
        self.noise_scheduler = DDPMScheduler.from_pretrained(folder, subfolder="scheduler")
        self.tokenizer = CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer")
        self.vae = AutoencoderKL.from_pretrained(folder, subfolder="vae").requires_grad_(False).to(device, self.dtype)
        text_encoder = CLIPTextModel.from_pretrained(folder, subfolder="text_encoder")
        self.text_encoder = text_encoder.requires_grad_(False).to(device, self.dtype)
        unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet").train()
        self.ema = EMAModel(unet.parameters(), decay=0.9999, model_cls=type(unet), model_config=unet.config)
        self.ema.to(device)
        optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-5, weight_decay=1e-2)
        schedule = get_scheduler("constant", optimizer)
        loader = DataLoader(
            CaptionedImages(Path(args.images), args.resolution),
            batch_size=args.batch,
            shuffle=True,
            drop_last=True,
            num_workers=args.workers,
            collate_fn=Collate(self.tokenizer),
        )
        prepared = self.accelerator.prepare(unet, optimizer, loader, schedule)
        self.unet, self.optimizer, self.loader, self.schedule = prepared

    def step(self, batch: dict[str, torch.Tensor]) -> float:
        """One update; answers the mean loss over all processes."""
        with self.accelerator.accumulate(self.unet):
            latents = self.vae.encode(batch["pixels"].to(self.dtype)).latent_dist.sample()
            latents = latents * self.vae.config.scaling_factor
            noise = torch.randn_like(latents)
            last = self.noise_scheduler.config.num_train_timesteps
            timesteps = torch.randint(0, last, (len(latents),), device=latents.device)
            noisy = self.noise_scheduler.add_noise(latents, noise, timesteps)
            states = self.text_encoder(batch["tokens"], return_dict=False)[0]
            predicted = self.unet(noisy, timesteps, states, return_dict=False)[0]
            loss = F.mse_loss(predicted.float(), noise.float(), reduction="mean")
            mean = self.accelerator.gather(loss.repeat(len(latents))).mean()
            self.accelerator.backward(loss)
            if self.accelerator.sync_gradients:
                self.accelerator.clip_grad_norm_(self.unet.parameters(), 1.0)
            self.optimizer.step()
            self.schedule.step()
            self.optimizer.zero_grad()
        if self.accelerator.sync_gradients:
            self.ema.step(self.unet.parameters())
        return mean.item()


def train(args: SimpleNamespace, turns: Any) -> None:
    """Epoch after epoch, until nobody asks for more."""
    usual = Usual(args)
    while True:
        for batch in usual.loader:
            turns.before_step()
            usual.step(batch)


if __name__ == "__main__":
    train(SimpleNamespace(**json.loads(sys.argv[1])), Turns())
