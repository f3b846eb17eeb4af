"""What planning knows of a model in one file: by its header alone, whatever its size."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file

from configs.errors import UserError
from configs.known_models import SD1, SD2, SDXL, KnownModel
from configs.model_file import (
    SETTINGS_1,
    SETTINGS_2,
    SETTINGS_XL,
    is_model_file,
    read_model_file,
)
from configs.model_folder import check_model_file
from configs.schema import RunConfig
from configs.solve.model_size import read_model_size
from tests.tiny import make_pipeline, make_pipeline_2, make_pipeline_xl
from train.checkpoint.single_file import write_single_file
from train.models.original_names import name_unet_tensors

UNET = "model.diffusion_model."
TEXT = {
    SETTINGS_1: {"cond_stage_model.transformer.text_model.final_layer_norm.weight": [768]},
    SETTINGS_2: {"cond_stage_model.model.ln_final.weight": [1024]},
    SETTINGS_XL: {
        "conditioner.embedders.0.transformer.text_model.final_layer_norm.weight": [768],
        "conditioner.embedders.1.model.ln_final.weight": [1280],
    },
}
VAE = {"first_stage_model.quant_conv.weight": [8, 8, 1, 1]}
SMALL = {f"{UNET}input_blocks.0.0.weight": [320, 4, 3, 3]} | VAE


def write_header(file: Path, shapes: Mapping[str, list[int]], metadata: Mapping[str, str] | None = None) -> Path:
    """A file of the right size without a byte of a tensor in it."""
    header: dict[str, object] = {"__metadata__": dict(metadata or {})}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text)
    os.truncate(file, 8 + len(text) + end)
    return file


def full_unet(model: KnownModel) -> dict[str, list[int]]:
    with torch.device("meta"):
        unet = UNet2DConditionModel(**model.configs["unet"])
    state = unet.state_dict()
    return {
        UNET + tensor.name: list(state[tensor.sources[0]].shape) for tensor in name_unet_tensors(unet.config, state)
    }


@pytest.mark.parametrize(
    ("model", "settings"), [(SD1, SETTINGS_1), (SD2, SETTINGS_2), (SDXL, SETTINGS_XL)], ids=["SD 1", "SD 2", "SDXL"]
)
def test_a_file_of_the_released_size_is_planned_like_the_released_model(
    tmp_path: Path, model: KnownModel, settings: str
) -> None:
    file = write_header(tmp_path / "a.safetensors", full_unet(model) | VAE | TEXT[settings])
    found = read_model_file(file)
    assert (found.class_name, found.settings, found.prediction) == (model.class_name, settings, None)
    assert found.size.parameters["unet"] == model.parameters["unet"]
    assert found.size.configs == model.configs
    assert read_model_size(str(file)) == found.size


@pytest.mark.parametrize(
    ("make", "settings", "prediction"),
    [
        (make_pipeline, SETTINGS_1, "epsilon"),
        (make_pipeline_2, SETTINGS_2, "v_prediction"),
        (make_pipeline_xl, SETTINGS_XL, "epsilon"),
    ],
)
def test_what_we_export_is_known_with_the_sizes_of_its_parts(
    tmp_path: Path, make, settings: str, prediction: str
) -> None:
    folder = make(tmp_path / "folder")
    write_single_file(folder, tmp_path / "a.safetensors", torch.float32, "a", 32)
    found = read_model_file(tmp_path / "a.safetensors")
    assert (found.settings, found.prediction) == (settings, prediction)
    assert found.size.parameters == read_model_size(str(folder)).parameters
    assert found.size.configs == {}, "of no size that is known"


@pytest.mark.parametrize(
    ("markers", "metadata", "prediction", "zero_terminal_snr"),
    [
        ({"v_pred": [0]}, {}, "v_prediction", False),
        ({"v_pred": [0], "ztsnr": [0]}, {}, "v_prediction", True),
        ({}, {"modelspec.prediction_type": "v"}, "v_prediction", False),
        ({}, {"modelspec.prediction_type": "epsilon"}, "epsilon", False),
        ({}, {"modelspec.prediction_type": "flow"}, None, False),
        ({}, {}, None, False),
    ],
)
def test_what_others_wrote_of_the_objective_is_read(
    tmp_path: Path, markers: dict, metadata: dict, prediction: str | None, zero_terminal_snr: bool
) -> None:
    file = write_header(tmp_path / "a.safetensors", SMALL | TEXT[SETTINGS_XL] | markers, metadata)
    found = read_model_file(file)
    assert (found.prediction, found.zero_terminal_snr) == (prediction, zero_terminal_snr)


def test_a_stable_diffusion_2_of_which_nobody_can_tell_what_it_predicts(tmp_path: Path) -> None:
    file = write_header(tmp_path / "a.safetensors", SMALL | TEXT[SETTINGS_2])

    def check(**changes: object) -> str:
        config = RunConfig(name="a", model=str(file), data={"images": "-"}, **changes)
        return check_model_file(config).class_name

    with pytest.raises(UserError, match="says nothing of what it predicts; write prediction: v_prediction"):
        check()
    assert check(prediction="epsilon") == check(pipeline_config="me/mine") == "StableDiffusionPipeline"


def test_an_objective_that_a_file_cannot_have_is_refused_by_its_header(tmp_path: Path) -> None:
    def check(shapes: Mapping[str, list[int]], **changes: object) -> str:
        file = write_header(tmp_path / "a.safetensors", SMALL | shapes)
        config = RunConfig(name="a", model=str(file), data={"images": "-"}, zero_terminal_snr=True, **changes)
        return check_model_file(config).class_name

    with pytest.raises(UserError, match=r"a\.safetensors: predicts epsilon, and zero_terminal_snr leaves only noise"):
        check(TEXT[SETTINGS_1])
    assert check(TEXT[SETTINGS_1], prediction="v_prediction") == "StableDiffusionPipeline"
    assert check(TEXT[SETTINGS_XL] | {"v_pred": [0]}) == "StableDiffusionXLPipeline"


def test_settings_of_another_family_or_none_are_refused_before_anything_is_read(tmp_path: Path) -> None:
    file = write_header(tmp_path / "a.safetensors", SMALL | TEXT[SETTINGS_1])
    (tmp_path / "xl").mkdir()
    (tmp_path / "xl/model_index.json").write_text('{"_class_name": "StableDiffusionXLPipeline"}')

    def check(settings: Path) -> None:
        check_model_file(RunConfig(name="a", model=str(file), data={"images": "-"}, pipeline_config=str(settings)))

    with pytest.raises(UserError, match=r"xl is a StableDiffusionXLPipeline, and .* a StableDiffusionPipeline"):
        check(tmp_path / "xl")
    with pytest.raises(
        UserError, match=r"pipeline_config: .*/none holds no model_index\.json; name a diffusers folder"
    ):
        check(tmp_path / "none")


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"lora_unet_down_blocks_0.lora_up.weight": [4, 4]}, "holds a LoRA; model names a file of a whole"),
        ({"joint_blocks.0.x": [4]}, "holds no UNet in the original layout"),
        ({f"{UNET}input_blocks.0.0.weight": [320]}, "holds no UNet in the original layout"),
        (SMALL, "lacks text_encoder; only a file of the whole model can be trained"),
        ({f"{UNET}input_blocks.0.0.weight": [320, 4, 3, 3]} | TEXT[SETTINGS_1], "lacks vae; only"),
        (
            {f"{UNET}input_blocks.0.0.weight": [320, 9, 3, 3]} | VAE | TEXT[SETTINGS_1],
            "its UNet takes 9 channels, as an inpainting model does",
        ),
        (SMALL | {"conditioner.embedders.0.model.ln_final.weight": [1280]}, "is SDXL's refiner"),
    ],
)
def test_a_file_that_is_no_whole_model_is_refused_by_what_it_is(tmp_path: Path, shapes: dict, message: str) -> None:
    file = write_header(tmp_path / "a.safetensors", shapes)
    with pytest.raises(UserError, match=message) as refused:
        read_model_file(file)
    assert str(refused.value).startswith(f"{file}: ")


@pytest.mark.parametrize(
    "header",
    [
        {"a": 1},
        {"a": {"dtype": "F32", "data_offsets": [0, 0]}},
        {"a": {"dtype": "F32", "shape": [1]}},
        {"a": {"dtype": "F32", "shape": "1", "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": [0], "data_offsets": [0]}},
        {"a": {"dtype": "F32", "shape": [None], "data_offsets": [0, 0]}},
        {"__metadata__": "a"},
        [],
    ],
)
def test_a_header_that_is_json_and_no_safetensors(tmp_path: Path, header: object) -> None:
    text = json.dumps(header).encode()
    (tmp_path / "a.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)
    with pytest.raises(UserError, match=r"a\.safetensors: is no \.safetensors, or was cut off; fetch it again"):
        read_model_file(tmp_path / "a.safetensors")


@pytest.mark.parametrize("content", [b"", b"\0" * 7, b"\xff" * 100, (20).to_bytes(8, "little") + b"{}"])
def test_half_a_file_and_other_things_are_no_model(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.safetensors: is no \.safetensors, or was cut off; fetch it again"):
        read_model_file(tmp_path / "a.safetensors")


def test_a_file_whose_tensors_were_cut_off(tmp_path: Path) -> None:
    file = write_header(tmp_path / "a.safetensors", SMALL | TEXT[SETTINGS_1])
    os.truncate(file, file.stat().st_size - 1)
    with pytest.raises(UserError, match="was cut off; fetch it again"):
        read_model_file(file)


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".pth", ".bin"])
def test_pickled_files_are_refused_unopened_with_the_cure(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"a{suffix}"
    assert is_model_file(str(file))
    with pytest.raises(UserError, match=r"is pickled, and whoever opens it runs what is in it; .* save_pretrained it"):
        read_model_file(file)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no such file; model names a \.safetensors, a diffusers folder or a hub id"):
        read_model_file(tmp_path / "none.safetensors")


def test_a_folder_that_is_called_like_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").mkdir()
    with pytest.raises(UserError, match=r"a\.safetensors: is a folder; model names"):
        read_model_file(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("model", "is_file"),
    [("/a/b.safetensors", True), ("/a/b.ckpt", True), ("/a/b", False), ("me/mine", False), ("me/b.safetensors", False)],
)
def test_a_file_is_told_from_folders_and_ids(model: str, is_file: bool) -> None:
    assert is_model_file(model) is is_file


def test_a_lone_tensor_is_no_model(tmp_path: Path) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="holds no UNet"):
        read_model_file(tmp_path / "a.safetensors")
