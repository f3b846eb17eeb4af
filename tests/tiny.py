"""Small real inputs, made from code: a whole Stable Diffusion folder with random weights, and an image folder."""

import json
from pathlib import Path

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from train.demo.make_base import NOISE_SCHEDULE, make_text_encoder, make_tokenizer


def make_pipeline(folder: Path, prediction: str = "epsilon") -> Path:
    """Like Stable Diffusion 1, with a UNet of about 0.15 M parameters; 32-pixel images have latents of 4×8×8."""
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    text_encoder: CLIPTextModel = make_text_encoder(tokenizer)
    return _save(folder, tokenizer, text_encoder, DDIMScheduler(**(NOISE_SCHEDULE | {"prediction_type": prediction})))


def make_pipeline_2(folder: Path) -> Path:
    """Like Stable Diffusion 2.1: v-prediction; OpenCLIP's text encoder, whose captions are padded with "!"; as many
    heads in each block as make them equally wide, linear projections around the attention, which is in fp32."""
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    tokenizer.pad_token = "!"
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=192,
        num_hidden_layers=3,
        num_attention_heads=3,
        projection_dim=32,
        hidden_act="gelu",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    scheduler = DDIMScheduler(**(NOISE_SCHEDULE | {"prediction_type": "v_prediction"}))
    heads = {"attention_head_dim": [1, 2], "use_linear_projection": True, "upcast_attention": True}
    return _save(folder, tokenizer, CLIPTextModel(config), scheduler, **heads)


def make_pipeline_xl(folder: Path) -> Path:
    """Like Stable Diffusion XL: two text encoders, of which the second has a projection and its captions are padded
    with "!"; a UNet of about 0.3 M parameters that is told sizes and the pooled embedding, with several transformer
    layers in a block; the empty caption is zeros."""
    torch.manual_seed(0)
    tokenizer, tokenizer_2 = make_tokenizer(), make_tokenizer()
    tokenizer_2.pad_token = "!"
    ids = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}  # as in the real configs, and true of no tokenizer
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=2,
            projection_dim=32,
            hidden_act="quick_gelu",
            **ids,
        )
    )
    text_encoder_2 = CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=len(tokenizer_2),
            hidden_size=48,
            intermediate_size=96,
            num_hidden_layers=4,
            num_attention_heads=3,
            projection_dim=40,
            hidden_act="gelu",
            **ids,
        )
    )
    time_dim = 8
    unet = _make_unet(
        cross_attention_dim=32 + 48,
        attention_head_dim=[1, 2],
        use_linear_projection=True,
        transformer_layers_per_block=[1, 2],
        addition_embed_type="text_time",
        addition_time_embed_dim=time_dim,
        projection_class_embeddings_input_dim=40 + 6 * time_dim,
    )
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        timestep_spacing="leading",
        steps_offset=1,
    )
    StableDiffusionXLPipeline(
        vae=_make_vae(force_upcast=True, scaling_factor=0.13025),
        text_encoder=text_encoder,
        text_encoder_2=text_encoder_2,
        tokenizer=tokenizer,
        tokenizer_2=tokenizer_2,
        unet=unet,
        scheduler=scheduler,
        force_zeros_for_empty_prompt=True,
    ).save_pretrained(folder)
    return folder


def _make_vae(**options: object) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=32,
        **options,
    )


def _make_unet(**options: object) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8,
        mid_block_type=None,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        **options,
    )


def _save(
    folder: Path,
    tokenizer: CLIPTokenizer,
    text_encoder: CLIPTextModel,
    scheduler: DDIMScheduler,
    **unet_options: object,
) -> Path:
    vae = _make_vae()
    width = text_encoder.config.hidden_size
    unet = _make_unet(cross_attention_dim=width, **({"attention_head_dim": 2} | unet_options))
    StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
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
