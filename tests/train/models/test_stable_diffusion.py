"""Model folders that are not whole: refused by the tensor's name, where the libraries go on with random numbers."""

import shutil
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file

from configs.errors import UserError
from configs.model_folder import check_model_folder
from configs.pipelines import PIPELINES
from configs.schema import RunConfig
from train.engines.base import load_parameters
from train.models import load_model, parts
from train.models.base import DiffusionModel

WEIGHTS = PIPELINES["StableDiffusionPipeline"].weights
TENSOR = {
    "unet": "conv_norm_out.weight",
    "vae": "quant_conv.bias",
    "text_encoder": "encoder.layers.0.mlp.fc1.weight",
}


@pytest.fixture
def folder(tmp_path, pipeline_folder) -> Path:
    return Path(shutil.copytree(pipeline_folder, tmp_path / "model"))


def load(folder: Path, precision: str = "fp32") -> DiffusionModel:
    """The whole model: the denoiser's weights are read by the engine."""
    config = RunConfig(name="a", model=str(folder), data={"images": "-", "cache": "off"}, precision=precision)
    model = load_model(config, folder, torch.device("cpu"))
    load_parameters(model.denoiser, model.weights, model.dtype, torch.device("cpu"))
    return model


def change(folder: Path, part: str, tensor: torch.Tensor | None) -> None:
    """Put `tensor` in the place of the part's own, or take it out."""
    path = folder / part / WEIGHTS[part]
    weights = load_file(path)
    assert TENSOR[part] in weights
    del weights[TENSOR[part]]
    if tensor is not None:
        weights[TENSOR[part]] = tensor
    save_file(weights, path, {"format": "pt"})


def test_a_whole_folder_loads(folder):
    assert load(folder).denoiser.dtype == torch.float32
    assert load(folder, "bf16").text_encoder.dtype == torch.bfloat16


@pytest.mark.parametrize("part", WEIGHTS)
def test_a_missing_tensor_is_refused_by_name(folder, part):
    change(folder, part, None)
    with pytest.raises(UserError, match=rf"model/{part}: its weights lack {TENSOR[part]}; fetch the model again"):
        load(folder)


@pytest.mark.parametrize("part", WEIGHTS)
def test_a_tensor_of_another_shape_is_refused_by_name(folder, part):
    change(folder, part, torch.zeros(3, 5))
    with pytest.raises(UserError, match=rf"model/{part}: .*{TENSOR[part]}.*3, 5"):
        load(folder)


@pytest.mark.parametrize("part", WEIGHTS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_tensor_that_is_not_finite_is_refused_by_name(folder, part, value):
    whole = load_file(folder / part / WEIGHTS[part])[TENSOR[part]]
    whole.view(-1)[-1] = value
    change(folder, part, whole)
    with pytest.raises(UserError, match=rf"model/{part}: not finite are {TENSOR[part]}"):
        load(folder)


@pytest.mark.parametrize("part", WEIGHTS)
@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1\n", None])
def test_a_file_that_is_no_safetensors_is_refused_by_its_part(folder, part, content):
    path = folder / part / WEIGHTS[part]
    path.write_bytes(path.read_bytes()[:1000] if content is None else content)
    with pytest.raises(UserError, match=rf"model/{part}: does not load \(.*; fetch the model again"):
        load(folder)


def test_the_machines_trouble_is_not_called_the_users(folder, monkeypatch):
    """Another node, or this one later, may load the same folder."""

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4096 bytes")

    monkeypatch.setattr(AutoencoderKL, "from_pretrained", fail)
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        load(folder)
    (folder / "vae" / WEIGHTS["vae"]).unlink()
    (folder / "vae" / WEIGHTS["vae"]).mkdir()  # as good as any file that cannot be read, also for root
    with pytest.raises(IsADirectoryError):
        parts.load_part(AutoencoderKL, folder / "vae")


@pytest.mark.parametrize("part", WEIGHTS)
def test_pickled_weights_are_refused_before_anything_is_queued(folder, part):
    path = folder / part / WEIGHTS[part]
    torch.save(load_file(path), path.with_name("pytorch_model.bin"))
    path.unlink()
    with pytest.raises(UserError, match=r"it holds pytorch_model.bin, and pickled files are never loaded") as refused:
        check_model_folder(folder)
    assert f"model/{part}: lacks {WEIGHTS[part]}" in str(refused.value)


def test_a_folder_of_fp16_files_alone_is_told_so(folder):
    path = folder / "unet" / WEIGHTS["unet"]
    path.rename(path.with_name("diffusion_pytorch_model.fp16.safetensors"))
    with pytest.raises(
        UserError, match=r"lacks diffusion_pytorch_model.safetensors; it holds diffusion_pytorch_model.fp16"
    ):
        check_model_folder(folder)
