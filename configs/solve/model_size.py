"""How large a pipeline's parts are: from the headers of their files, without torch and before anything is queued."""

import json
import os
from pathlib import Path
from typing import Any

from configs.known_models import KNOWN_MODELS, PipelineSize
from configs.model_file import count_elements, is_model_file, read_header, read_model_file
from configs.model_folder import find_cached_snapshot
from configs.pipelines import PIPELINES

_COUNTED = ("unet", "vae")  # parts whose layers are counted, and whose configs are read


def read_model_size(model: str, revision: str | None = None) -> PipelineSize:
    """The sizes of `model`, a folder, a file, or a hub id and its revision: from its files (the folder's, or the
    Hugging Face cache's), else from what is known of the id. What neither tells is missing. Raises UserError for a file
    that is no model."""
    if is_model_file(model):
        return read_model_file(Path(model)).size
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
    headers = [read_header(file) for file in _weight_files(part)]
    known = [count_elements(header) for header in headers if header is not None]
    return sum(known) if known and len(known) == len(headers) else None


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
