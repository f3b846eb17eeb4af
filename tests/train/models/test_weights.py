"""The denoiser's weights by ranges: what safetensors and diffusers read of the same files, to the bit."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file

from configs.errors import UserError
from configs.schema import RunConfig
from train.models import load_model
from train.models.stable_diffusion import StableDiffusion
from train.models.weights import PartWeights

FILE = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def unet(tmp_path: Path, pipeline_folder: Path) -> Path:
    return Path(shutil.copytree(pipeline_folder, tmp_path / "model")) / "unet"


def weights_of(unet: Path) -> PartWeights:
    return PartWeights(unet, StableDiffusion.make_denoiser(unet.parent))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_any_range_is_what_the_file_holds(unet: Path, dtype: torch.dtype) -> None:
    whole = {name: tensor.to(dtype) for name, tensor in load_file(unet / FILE).items()}
    save_file(whole, unet / FILE, {"format": "pt"})
    weights = weights_of(unet)
    assert weights.sizes == {name: tensor.numel() for name, tensor in whole.items()}
    for name, tensor in whole.items():
        flat, size = tensor.float().flatten(), tensor.numel()
        for offset, length in ((0, size), (0, 1), (size - 1, 1), (size // 3, size // 2), (size, 0)):
            values = weights.read(name, offset, length)
            assert values.dtype == torch.float32
            assert torch.equal(values, flat[offset : offset + length]), (name, offset, length)


def test_a_part_in_several_files_is_one(unet: Path) -> None:
    whole = load_file(unet / FILE)
    (unet / FILE).unlink()
    UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(unet)).save_pretrained(
        unet, max_shard_size="200KB"
    )
    files = sorted(unet.glob("*.safetensors"))
    assert len(files) > 2
    for file in files:
        save_file({name: whole[name] for name in load_file(file)}, file, {"format": "pt"})
    weights = weights_of(unet)
    assert all(torch.equal(weights.read(name, 0, t.numel()), t.flatten()) for name, t in whole.items())
    files[1].unlink()
    with pytest.raises(UserError, match=rf"model/unet: does not load \(.*{files[1].name}.*; fetch the model again"):
        weights_of(unet)
    (unet / f"{FILE}.index.json").write_text("{")
    with pytest.raises(UserError, match=r"model/unet: does not load \(.*index.json: .*; fetch the model again"):
        weights_of(unet)


def test_a_file_that_ends_while_it_is_read_is_refused(unet: Path) -> None:
    weights = weights_of(unet)
    with open(unet / FILE, "r+b") as file:
        file.truncate(20_000)
    last = max(weights._stored, key=lambda name: weights._stored[name].begin)
    with pytest.raises(UserError, match=rf"model/unet: does not load \({last} is cut off\); fetch the model again"):
        weights.read(last, 0, weights.sizes[last])


def test_numbers_that_are_no_floats_are_refused(unet: Path) -> None:
    whole = load_file(unet / FILE)
    save_file(whole | {"conv_in.bias": whole["conv_in.bias"].to(torch.int8)}, unet / FILE, {"format": "pt"})
    with pytest.raises(UserError, match=r"does not load \(.*conv_in.bias is I8, not one of F32, F16, BF16\)"):
        weights_of(unet)


def test_dropout_is_refused_as_it_draws_by_no_position(unet: Path) -> None:
    path = unet / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"dropout": 0.1}))
    config = RunConfig(name="a", model=str(unet.parent), data={"images": "-"}, precision="fp32")
    with pytest.raises(UserError, match=r"unet/config.json: \S+ drops values with p = 0.1.*write dropout: 0"):
        load_model(config, unet.parent, torch.device("cpu"))
