"""Pictures of a pipeline folder for given prompts and seeds, and one sheet that shows them with their captions."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils import logging
from PIL import Image, ImageDraw, ImageFont

CELL = 192  # pixels, the side of one picture on the sheet
MARGIN = 8
LINE = 13  # pixels, the height of one line of a caption


def draw_prompts(
    pipeline_dir: Path, prompts: Sequence[str], seeds: list[int], timesteps: int, guidance: float, side: int
) -> list[Image.Image]:
    """One picture of side × side pixels per prompt, on the CPU, all in one batch; each starts from its own seed."""
    logging.disable_progress_bar()
    pipeline = StableDiffusionPipeline.from_pretrained(pipeline_dir, dtype=torch.float32, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    noise = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    pictures = pipeline(
        list(prompts),
        height=side,
        width=side,
        num_inference_steps=timesteps,
        guidance_scale=guidance,
        generator=noise,
    )
    return list(pictures.images)


def arrange_grid(images: Sequence[Image.Image], captions: Sequence[str], columns: int = 4) -> Image.Image:
    """A sheet of all images, row by row, each enlarged without smoothing, its caption in two lines below."""
    rows = -(-len(images) // columns)
    width, height = CELL + MARGIN, CELL + 2 * LINE + MARGIN
    sheet = Image.new("RGB", (columns * width + MARGIN, rows * height + MARGIN), (200, 200, 200))
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for index, (image, text) in enumerate(zip(images, captions, strict=True)):
        x, y = MARGIN + index % columns * width, MARGIN + index // columns * height
        sheet.paste(image.resize((CELL, CELL), Image.Resampling.NEAREST), (x, y))
        for number, line in enumerate(textwrap.wrap(text, 26)[:2]):
            pen.text((x, y + CELL + number * LINE), line, fill=(0, 0, 0), font=font)
    return sheet
