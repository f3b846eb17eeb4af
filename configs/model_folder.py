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
WEIGHTS = {  # of these parts; or the same name with `.index.json` behind it, where they are sharded
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}

NO_INDEX = "holds no model_index.json; model names a diffusers pipeline folder or a hub id"


def read_pipeline_class(index: Path) -> str:
    """The pipeline's class by its `model_index.json`. Raises UserError where the file cannot be read or names none."""
    try:
        name = json.loads(index.read_text())["_class_name"]
        if not isinstance(name, str):
            raise TypeError(f"_class_name is {name!r}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{index}: is no pipeline's index ({type(error).__name__} {error}); fetch it again") from None
    return name


def check_pipeline_class(model: str, pipeline_class: str) -> None:
    """Refuse a class that this version does not train; `model` is how the user names the pipeline."""
    if pipeline_class != TRAINABLE:
        raise UserError(f"{model}: is a {pipeline_class}; this version trains {TRAINABLE} folders (SD 1 and 2)")


def check_model_folder(folder: Path) -> None:
    """Refuse what is not a whole Stable Diffusion 1 or 2 pipeline, before any weight is read."""
    index = folder / "model_index.json"
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; model names a diffusers pipeline folder or a hub id")
    if not index.is_file():
        raise UserError(f"{folder}: {NO_INDEX}")
    check_pipeline_class(str(folder), read_pipeline_class(index))
    missing = [f"{part}/{name}" for part, name in PARTS.items() if not (folder / part / name).is_file()]
    if missing:
        raise UserError(f"{folder}: lacks {', '.join(missing)}; fetch the model again")
    for part, name in WEIGHTS.items():
        if not (folder / part / name).is_file() and not (folder / part / f"{name}.index.json").is_file():
            raise UserError(f"{folder / part}: lacks {name}; {_other_weights(folder / part)}")


def _other_weights(part: Path) -> str:
    """What lies there instead, and the cure."""
    found = sorted(path.name for path in part.iterdir() if path.suffix in (".safetensors", ".bin", ".ckpt", ".msgpack"))
    if not found:
        return "it holds no weights; fetch the model again"
    pickled = "" if any(name.endswith(".safetensors") for name in found) else ", and pickled files are never loaded"
    return f"it holds {', '.join(found)}{pickled}; save it with save_pretrained(…, safe_serialization=True)"
