"""How large a pipeline's parts are: from the headers of their files, without torch and before anything is queued."""

import json
import math
import os
from pathlib import Path
from typing import Any

from configs.known_models import KNOWN_MODELS, PipelineSize
from configs.model_folder import find_cached_snapshot
from configs.pipelines import PIPELINES

_HEADER_LIMIT = 100 << 20  # bytes; safetensors' own limit
_COUNTED = ("unet", "vae")  # parts whose layers are counted, and whose configs are read


def read_model_size(model: str, revision: str | None = None) -> PipelineSize:
    """The sizes of `model`, a folder, or a hub id and its revision: from its files (the folder's, or the Hugging Face
    cache's), else from what is known of the id. What neither tells is missing."""
    folder = Path(model) if os.path.isabs(model) else find_cached_snapshot(model, revision)
    known = KNOWN_MODELS.get(model)
    parameters = dict(known.parameters) if known is not None else {}
    configs = dict(known.configs) if known is not None else {}
    if folder is None:
        return PipelineSize(parameters, configs)
    for part in sorted({part for pipeline in PIPELINES.values() for part in pipeline.weights}):
        count = _count_parameters(folder / part)
        if count is not None:
            parameters[part] = count
    for part in _COUNTED:
        config = _read_config(folder / part)
        if config is not None:
            configs[part] = config
    return PipelineSize(parameters, configs)


def _read_config(part: Path) -> dict[str, Any] | None:
    """The part's config.json; None where there is none that reads: the load will say why."""
    try:
        config = json.loads((part / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return config if isinstance(config, dict) and config else None


def _count_parameters(part: Path) -> int | None:
    """Sum over the headers of the part's safetensors; None where there are none or they do not read."""
    sizes = [_header_parameters(file) for file in _weight_files(part)]
    known = [size for size in sizes if size is not None]
    return sum(known) if known and len(known) == len(sizes) else None


def _weight_files(part: Path) -> list[Path]:
    """The files that together hold the weights once: fp32 before a variant such as fp16, whole before sharded."""
    for name in ("diffusion_pytorch_model", "model"):
        if (single := part / f"{name}.safetensors").is_file():
            return [single]
        for index in sorted(part.glob(f"{name}.safetensors.index*.json")):
            try:
                shards = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
            except (ValueError, KeyError, AttributeError):
                return []  # damaged: unknown, and the load will say why
            return [part / name for name in sorted(set(shards))]
        variants = sorted(part.glob(f"{name}.*.safetensors"))
        if variants:
            return variants[:1]
    return []


def _header_parameters(file: Path) -> int | None:
    """Elements of all tensors in a safetensors file: 8 bytes little-endian length, then that much JSON."""
    try:
        with open(file, "rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if not 2 <= length <= _HEADER_LIMIT:
                return None
            header: dict[str, Any] = json.loads(stream.read(length))
    except (OSError, ValueError):
        return None
    shapes: list[list[int]] = [tensor["shape"] for name, tensor in header.items() if name != "__metadata__"]
    return sum(math.prod(shape) for shape in shapes)
