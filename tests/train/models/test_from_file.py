"""A model in one file, to a diffusers folder and with every weight; the process that does it is tested with the hub."""

import json
from collections.abc import Callable
from pathlib import Path

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file

from configs.errors import UserError
from tests.tiny import make_pipeline, make_pipeline_2, make_pipeline_xl
from tests.weights import read_part_weights
from train.checkpoint.single_file import write_single_file
from train.models.from_file import convert_file

SD, XL = "StableDiffusionPipeline", "StableDiffusionXLPipeline"


@pytest.mark.parametrize(
    ("make", "class_name", "dtype"),
    [
        (make_pipeline, SD, torch.float32),
        (make_pipeline_2, SD, torch.bfloat16),
        (make_pipeline_xl, XL, torch.float16),
    ],
)
def test_the_folder_has_every_weight_of_the_file_and_all_settings(
    tmp_path: Path, make: Callable[[Path], Path], class_name: str, dtype: torch.dtype
) -> None:
    pipeline = make(tmp_path / "pipeline")
    write_single_file(pipeline, tmp_path / "one.safetensors", dtype, "one", 32)
    expected = read_part_weights(pipeline)
    for weights in pipeline.glob("*/*.safetensors"):
        weights.unlink()  # settings are enough
    convert_file(tmp_path / "one.safetensors", class_name, pipeline, tmp_path / "folder")
    found = read_part_weights(tmp_path / "folder")
    assert found.keys() == expected.keys()
    assert [name for name in found if not torch.equal(found[name], expected[name].to(dtype))] == []
    for name in ("scheduler/scheduler_config.json", "unet/config.json"):
        settings, made = (json.loads((place / name).read_text()) for place in (pipeline, tmp_path / "folder"))
        differing = {key for key in settings | made if settings.get(key) != made.get(key)}
        assert differing <= {"_name_or_path", "_diffusers_version"}, name


def test_what_the_file_says_of_the_objective_is_the_scheduler_s(tmp_path: Path) -> None:
    pipeline = make_pipeline(tmp_path / "pipeline")
    path = pipeline / "scheduler" / "scheduler_config.json"
    plain = path.read_text()
    told = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    path.write_text(json.dumps(json.loads(plain) | told))
    write_single_file(pipeline, tmp_path / "one.safetensors", torch.float32, "one", 32)
    path.write_text(plain)
    betas = {key: json.loads(plain)[key] for key in ("beta_start", "beta_end", "beta_schedule")}
    for settings_class in ("DDIMScheduler", "PNDMScheduler"):  # the second knows nothing of zero terminal SNR
        getattr(diffusers, settings_class).from_config(json.loads(plain)).save_config(path.parent)
        index = json.loads((pipeline / "model_index.json").read_text())
        index["scheduler"] = ["diffusers", settings_class]
        (pipeline / "model_index.json").write_text(json.dumps(index))
        folder = tmp_path / settings_class
        convert_file(tmp_path / "one.safetensors", SD, pipeline, folder)
        made = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
        assert (told | betas | {"timestep_spacing": "trailing"}).items() <= made.items()
        assert json.loads((folder / "model_index.json").read_text())["scheduler"] == ["diffusers", "DDIMScheduler"]


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        ("model.diffusion_model.time_embed.0.bias", "diffusers does not read it with the configs of"),
        (
            "cond_stage_model.transformer.text_model.encoder.layers.0.mlp.fc1.bias",
            "text_encoder: encoder.layers.0.mlp.fc1.bias",
        ),
    ],
)
def test_a_file_that_lacks_a_weight_is_refused(tmp_path: Path, tensor: str, message: str) -> None:
    pipeline = make_pipeline(tmp_path / "pipeline")
    write_single_file(pipeline, tmp_path / "one.safetensors", torch.float32, "one", 32)
    tensors = load_file(tmp_path / "one.safetensors")
    del tensors[tensor]
    save_file(tensors, tmp_path / "one.safetensors")
    with pytest.raises(UserError) as refused:
        convert_file(tmp_path / "one.safetensors", SD, pipeline, tmp_path / "folder")
    assert message in str(refused.value)
    assert not (tmp_path / "folder").exists()
