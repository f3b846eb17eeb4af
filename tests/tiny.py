"""Small real inputs, made from code: a whole Stable Diffusion folder with random weights, and an image folder."""

import json
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from transformers import CLIPTextModel

from train.demo.make_base import SCHEDULE, make_text_encoder, make_tokenizer


def make_pipeline(folder: Path, prediction: str = "epsilon") -> Path:
    """A pipeline folder whose UNet has about 0.15 M parameters; 32-pixel images have latents of 4×8×8."""
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    text_encoder: CLIPTextModel = make_text_encoder(tokenizer)
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=32,
    )
    unet = UNet2DConditionModel(
        sample_size=8,
        mid_block_type=None,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=text_encoder.config.hidden_size,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=DDIMScheduler(**(SCHEDULE | {"prediction_type": prediction})),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder


def make_images(folder: Path, count: int = 20, side: int = 40) -> Path:
    """`count` noisy PNGs with metadata.jsonl, as Hugging Face's imagefolder has it."""
    folder.mkdir(parents=True)
    draw = np.random.default_rng(0)
    lines = []
    for number in range(count):
        pixels = draw.integers(0, 256, (side, side + 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:03d}.png")
        lines.append(json.dumps({"file_name": f"{number:03d}.png", "text": f"a red circle {number}"}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return folder
