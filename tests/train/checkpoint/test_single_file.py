"""One file in the original layout holds the pipeline: read back by diffusers' own reader, offline."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors import safe_open
from safetensors.torch import save_file

from configs.errors import UserError
from tests.tiny import make_pipeline, make_pipeline_2, make_pipeline_xl
from train.checkpoint.single_file import write_single_file

FAMILIES = {
    "stable-diffusion-v1": (make_pipeline, StableDiffusionPipeline),
    "stable-diffusion-v2-768-v": (make_pipeline_2, StableDiffusionPipeline),
    "stable-diffusion-xl-v1-base": (make_pipeline_xl, StableDiffusionXLPipeline),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Like Stable Diffusion 1; nobody writes in it."""
    return make_pipeline(tmp_path_factory.mktemp("pipeline") / "sd1")


def write(folder: Path, out: Path, dtype: torch.dtype = torch.float32) -> dict[str, str]:
    """What the header of the written file says."""
    write_single_file(folder, out, dtype, "a title", 32)
    assert [path for path in out.parent.iterdir() if path.name.startswith(".")] == [], "nothing is left over"
    return read_header(out)[0]


def read_header(file: Path) -> tuple[dict[str, str], set[str]]:
    with safe_open(file, framework="pt") as opened:
        return opened.metadata(), set(opened.keys())


def states(pipeline: DiffusionPipeline) -> dict[tuple[str, str], torch.Tensor]:
    parts = {name: part for name, part in pipeline.components.items() if isinstance(part, torch.nn.Module)}
    return {(part, name): tensor for part in parts for name, tensor in parts[part].state_dict().items()}


def draw(pipeline: DiffusionPipeline) -> np.ndarray:
    """Weights are copied first: mapped from a file they lie anywhere, and kernels round by where numbers lie."""
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            part.load_state_dict({name: tensor.clone() for name, tensor in part.state_dict().items()}, assign=True)
    pipeline.set_progress_bar_config(disable=True)
    options: dict[str, Any] = {"height": 32, "width": 32, "num_inference_steps": 3, "output_type": "np"}
    return pipeline("a red circle", generator=torch.Generator().manual_seed(1), **options).images


@pytest.mark.parametrize("architecture", FAMILIES)
def test_diffusers_reads_the_same_pipeline_from_the_file_as_from_the_folder(tmp_path: Path, architecture: str) -> None:
    make: Callable[[Path], Path]
    make, pipeline_class = FAMILIES[architecture]
    folder, file = make(tmp_path / "folder"), tmp_path / "one.safetensors"
    metadata = write(folder, file)
    assert metadata["modelspec.architecture"] == architecture
    assert (metadata["modelspec.title"], metadata["modelspec.resolution"]) == ("a title", "32x32")
    loaded = pipeline_class.from_pretrained(folder)
    read = pipeline_class.from_single_file(file, config=str(folder), local_files_only=True)
    expected, found = states(loaded), states(read)
    assert found.keys() == expected.keys()
    assert [key for key in found if not torch.equal(found[key], expected[key])] == []
    assert {tensor.dtype for tensor in found.values()} == {torch.float32}
    np.testing.assert_allclose(draw(read), draw(loaded), atol=1e-5)  # oneDNN rounds by where weights lie in memory


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_file_of_16_bits_holds_every_weight_rounded_once(tmp_path: Path, folder: Path, dtype: torch.dtype) -> None:
    write(folder, tmp_path / "full.safetensors")
    write(folder, tmp_path / "half.safetensors", dtype)
    with safe_open(tmp_path / "full.safetensors", "pt") as full, safe_open(tmp_path / "half.safetensors", "pt") as half:
        assert set(full.keys()) == set(half.keys())
        for name in full.keys():  # noqa: SIM118  (it is no dict)
            assert half.get_tensor(name).dtype == dtype
            assert torch.equal(half.get_tensor(name), full.get_tensor(name).to(dtype)), name


def change_unet(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    with safe_open(path, framework="pt") as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    change(tensors)
    save_file(tensors, path)


def test_a_weight_that_16_bits_cannot_hold_is_refused_by_name_and_no_file_is_there(
    tmp_path: Path, folder: Path
) -> None:
    shutil.copytree(folder, tmp_path / "folder")
    change_unet(tmp_path / "folder", lambda unet: unet["conv_out.bias"].fill_(-70000.0))
    with pytest.raises(
        UserError, match=r"^unet: conv_out\.bias: holds 70000, and float16 ends at 65504; write export_"
    ):
        write(tmp_path / "folder", tmp_path / "one.safetensors", torch.float16)
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
    write(tmp_path / "folder", tmp_path / "one.safetensors", torch.bfloat16)


def test_what_others_read_of_the_objective(tmp_path: Path, folder: Path) -> None:
    assert write(folder, tmp_path / "e.safetensors")["modelspec.prediction_type"] == "epsilon"
    assert not {"v_pred", "ztsnr"} & read_header(tmp_path / "e.safetensors")[1]
    shutil.copytree(folder, tmp_path / "folder")
    path = tmp_path / "folder" / "scheduler" / "scheduler_config.json"
    settings = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    assert write(tmp_path / "folder", tmp_path / "v.safetensors")["modelspec.prediction_type"] == "v"
    assert {"v_pred", "ztsnr"} <= read_header(tmp_path / "v.safetensors")[1]
    read = StableDiffusionPipeline.from_single_file(
        tmp_path / "v.safetensors", config=str(tmp_path / "folder"), local_files_only=True
    )
    assert read.scheduler.config.prediction_type == "v_prediction"


def test_the_same_pipeline_gives_the_same_bytes_and_takes_the_place_of_an_older_export(
    tmp_path: Path, folder: Path
) -> None:
    one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    write(folder, one)
    write(folder, two, torch.float16)
    assert one.read_bytes() != two.read_bytes()
    write(folder, two)
    assert one.read_bytes() == two.read_bytes()


@pytest.mark.parametrize("content", [b"", b"half of something", "another"])
def test_a_file_of_somebody_else_is_left_alone(tmp_path: Path, folder: Path, content: bytes | str) -> None:
    file = tmp_path / "one.safetensors"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        save_file({"a": torch.ones(1)}, file)
    before = file.read_bytes()
    with pytest.raises(UserError, match="exists and was not exported by Lockstep; name another file"):
        write(folder, file)
    assert file.read_bytes() == before


def test_weights_in_several_files_and_buffers_of_earlier_releases(tmp_path: Path, folder: Path) -> None:
    shutil.copytree(folder, tmp_path / "folder")
    shutil.rmtree(tmp_path / "folder" / "unet")
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    pipeline.unet.save_pretrained(tmp_path / "folder" / "unet", max_shard_size="200KB")
    assert len(list((tmp_path / "folder" / "unet").glob("*.safetensors"))) > 1
    write(folder, tmp_path / "one.safetensors")
    write(tmp_path / "folder", tmp_path / "many.safetensors")
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "many.safetensors").read_bytes()
