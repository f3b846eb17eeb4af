"""An exported pipeline as one .safetensors file in the original layout, for ComfyUI and AUTOMATIC1111's web UI.

What they learn from the file beside its tensors: `modelspec.*` in its header (Stability AI's ModelSpec 1.0.0), and the
empty tensors `v_pred` and `ztsnr`, by which ComfyUI knows an SDXL that predicts v, also with zero terminal SNR.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from configs.model_folder import read_pipeline_class
from configs.pipelines import PIPELINES
from train.checkpoint.cast import cast_weight
from train.checkpoint.export_place import MARK, MARK_KEY, open_export_file
from train.models.original_names import (
    OriginalTensor,
    is_open_clip,
    name_text_tensors,
    name_unet_tensors,
    name_vae_tensors,
)

_DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
_NAMES = {"unet": name_unet_tensors, "vae": name_vae_tensors}  # all other parts with weights are text encoders


@dataclass(frozen=True)
class _Placed:
    """A tensor of the file, and the open files that hold its sources."""

    part: str
    tensor: OriginalTensor
    files: Mapping[str, Any]

    @property
    def shape(self) -> list[int]:
        shapes = [self.files[source].get_slice(source).get_shape() for source in self.tensor.sources]
        first, *rest = shapes[0]
        if self.tensor.form == "transposed":
            return [*rest, first]
        joined = [sum(shape[0] for shape in shapes), *rest]
        return [*joined, 1, 1] if self.tensor.form == "convolution" and len(joined) == 2 else joined

    def read(self, dtype: torch.dtype) -> torch.Tensor:
        """Raises UserError where a value has no place in `dtype`."""
        values = [
            cast_weight(f"{self.part}: {source}", self.files[source].get_tensor(source), dtype)
            for source in self.tensor.sources
        ]
        joined = torch.cat(values) if len(values) > 1 else values[0]
        return (joined.T if self.tensor.form == "transposed" else joined).contiguous()


def write_single_file(folder: Path, out: Path, dtype: torch.dtype, title: str, resolution: int) -> None:
    """Write the pipeline in `folder` as the file `out`, in `dtype`; whole or not at all, a tensor at a time.

    `title` and `resolution` (pixels of a side) are told in the header. Takes the place of an older export; raises
    UserError where `out` is anything else, or a part has no place in the original layout.
    """
    placed = sorted(_list_tensors(folder), key=lambda one: one.tensor.name)
    scheduler = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    mark = (folder / MARK).read_text() if (folder / MARK).is_file() else "{}"
    metadata = {MARK_KEY: " ".join(mark.split()), **_describe(folder, scheduler, title, resolution)}
    markers = {"v_pred": scheduler.get("prediction_type") == "v_prediction"}
    markers["ztsnr"] = bool(scheduler.get("rescale_betas_zero_snr"))
    header = _render_header({one.tensor.name: one.shape for one in placed}, markers, dtype, metadata)
    with open_export_file(out) as temporary, open(temporary, "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for one in placed:
            file.write(one.read(dtype).flatten().view(torch.uint8).numpy().data)


def _list_tensors(folder: Path) -> Iterator[_Placed]:
    pipeline = PIPELINES[read_pipeline_class(folder / "model_index.json")]
    for part, prefix in pipeline.original.items():
        files = _open_part(folder / part, pipeline.weights[part])
        config = json.loads((folder / part / "config.json").read_text())
        name_tensors = _NAMES.get(part, name_text_tensors)
        for tensor in name_tensors(config, files):
            yield _Placed(part, OriginalTensor(prefix + tensor.name, tensor.sources, tensor.form), files)


def _open_part(part: Path, name: str) -> dict[str, Any]:
    """Tensor → the open file that holds it."""
    index = part / f"{name}.index.json"
    names = [name] if (part / name).is_file() else sorted(set(json.loads(index.read_text())["weight_map"].values()))
    files = [safe_open(part / each, framework="pt") for each in names]
    return {tensor: file for file in files for tensor in file.keys()}  # noqa: SIM118  (it is no dict)


def _describe(folder: Path, scheduler: Mapping[str, Any], title: str, resolution: int) -> dict[str, str]:
    """ModelSpec's keys; the date, which it would like as well, would make two exports of one checkpoint differ."""
    prediction = scheduler.get("prediction_type", "epsilon")
    if (folder / "text_encoder_2").is_dir():
        architecture = "stable-diffusion-xl-v1-base"
    elif is_open_clip(json.loads((folder / "text_encoder" / "config.json").read_text())):
        architecture = "stable-diffusion-v2-768-v" if prediction == "v_prediction" else "stable-diffusion-v2-512"
    else:
        architecture = "stable-diffusion-v1"
    return {
        "format": "pt",
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": architecture,
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
        "modelspec.title": title,
        "modelspec.resolution": f"{resolution}x{resolution}",
        "modelspec.prediction_type": "v" if prediction == "v_prediction" else prediction,
    }


def _render_header(
    shapes: Mapping[str, list[int]], markers: Mapping[str, bool], dtype: torch.dtype, metadata: Mapping[str, str]
) -> bytes:
    """safetensors' JSON header, padded to whole words of 8 bytes as its own writer does."""
    header: dict[str, object] = {"__metadata__": metadata}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + dtype.itemsize * math.prod(shape)
        header[name] = {"dtype": _DTYPES[dtype], "shape": shape, "data_offsets": [begin, end]}
    for name, is_set in markers.items():
        if is_set:
            header[name] = {"dtype": _DTYPES[dtype], "shape": [0], "data_offsets": [end, end]}
    text = json.dumps(header).encode()
    return text + b" " * (-len(text) % 8)
