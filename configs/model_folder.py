"""A pipeline folder as diffusers lays it out, looked at without torch."""

import json
from pathlib import Path

from configs.errors import UserError

TRAINABLE = "StableDiffusionPipeline"
PARTS = {
    "unet": "config.json",
    "vae": "config.json",
    "text_encoder": "config.json",
    "tokenizer": "tokenizer_config.json",
    "scheduler": "scheduler_config.json",
}


def check_model_folder(folder: Path) -> None:
    """Refuse what is not a whole Stable Diffusion 1 or 2 pipeline, before any weight is read."""
    index = folder / "model_index.json"
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; model names a diffusers pipeline folder or a hub id")
    if not index.is_file():
        raise UserError(f"{folder}: holds no model_index.json; model names a diffusers pipeline folder or a hub id")
    try:
        kind = json.loads(index.read_text())["_class_name"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise UserError(f"{index}: is no pipeline's index ({type(error).__name__} {error}); fetch it again") from None
    if kind != TRAINABLE:
        raise UserError(f"{folder}: is a {kind}; this version trains {TRAINABLE} folders (SD 1 and 2)")
    missing = [f"{part}/{name}" for part, name in PARTS.items() if not (folder / part / name).is_file()]
    if missing:
        raise UserError(f"{folder}: lacks {', '.join(missing)}; fetch the model again")
