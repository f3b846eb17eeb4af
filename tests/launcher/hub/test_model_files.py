"""A model in one file is turned once into a diffusers folder, which is found again by what the file holds."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from configs.errors import UserError
from configs.schema import RunConfig
from launcher.hub.model_file import find_model_folder, resolve_model_file
from tests.tiny import make_pipeline, make_pipeline_2, make_pipeline_xl
from train.checkpoint.single_file import write_single_file

FAMILIES = {"sd1": make_pipeline, "sd2": make_pipeline_2, "xl": make_pipeline_xl}


def configure(folder: Path, name: str = "one.safetensors", **changes: object) -> RunConfig:
    settings = {"model": str(folder / name), "pipeline_config": str(folder / "settings"), "runs": str(folder / "runs")}
    return RunConfig(**({"name": "a", "data": {"images": "-"}} | settings | changes))


def make_file(folder: Path, make: Callable[[Path], Path], dtype: torch.dtype = torch.float32) -> Path:
    """`one.safetensors`, and beside it `settings`, the same pipeline without a weight. Answers the pipeline."""
    pipeline = make(folder / "pipeline")
    write_single_file(pipeline, folder / "one.safetensors", dtype, "one", 32)
    shutil.copytree(pipeline, folder / "settings", ignore=shutil.ignore_patterns("*.safetensors"))
    return pipeline


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    tensors = {}
    for file in folder.glob("*/*.safetensors"):
        with safe_open(file, framework="pt") as opened:
            tensors |= {f"{file.parent.name}: {name}": opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    return tensors


@pytest.mark.parametrize(("family", "dtype"), [("sd1", torch.float16), ("sd2", torch.float32), ("xl", torch.float32)])
def test_the_folder_has_every_weight_of_the_file_and_is_made_once(
    tmp_path: Path, family: str, dtype: torch.dtype, capfd: pytest.CaptureFixture[str]
) -> None:
    pipeline = make_file(tmp_path, FAMILIES[family], dtype)
    config = configure(tmp_path)
    assert find_model_folder(config) is None
    folder = resolve_model_file(config)
    assert folder.parent == tmp_path / "runs/.lockstep/models"
    expected, found = read_weights(pipeline), read_weights(folder)
    assert found.keys() == expected.keys()
    assert [name for name in found if not torch.equal(found[name], expected[name].to(dtype))] == []
    for name in ("scheduler/scheduler_config.json", "unet/config.json"):
        settings, made = (json.loads((place / name).read_text()) for place in (pipeline, folder))
        differing = {key for key in settings | made if settings.get(key) != made.get(key)}
        assert differing <= {"_name_or_path", "_diffusers_version"}, name
    assert f"turning {config.model} into a diffusers folder, once: {folder}\n" in capfd.readouterr().out
    if family == "sd1":
        moved = tmp_path / "elsewhere.safetensors"
        shutil.copy(tmp_path / "one.safetensors", moved)
        for again in (config, configure(tmp_path, "elsewhere.safetensors")):
            assert resolve_model_file(again) == find_model_folder(again) == folder
        os.utime(moved)
        assert find_model_folder(configure(tmp_path, moved.name)) is None, "nobody has looked into it since"
        assert resolve_model_file(configure(tmp_path, moved.name)) == folder
        assert "turning" not in capfd.readouterr().out


def test_what_the_file_says_of_the_objective_is_the_scheduler_s(tmp_path: Path) -> None:
    pipeline = make_pipeline(tmp_path / "pipeline")
    path = pipeline / "scheduler" / "scheduler_config.json"
    plain = path.read_text()
    path.write_text(json.dumps(json.loads(plain) | {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}))
    write_single_file(pipeline, tmp_path / "one.safetensors", torch.float32, "one", 32)
    path.write_text(plain)
    pipeline.rename(tmp_path / "settings")
    folder = resolve_model_file(configure(tmp_path))
    made = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    expected = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    assert expected.items() <= made.items()


def test_settings_that_do_not_fit_and_a_file_that_is_damaged_leave_nothing(tmp_path: Path) -> None:
    make_file(tmp_path, make_pipeline)
    make_pipeline_xl(tmp_path / "xl")
    with pytest.raises(
        UserError, match=r"is a StableDiffusionXLPipeline, and .* a StableDiffusionPipeline; name another"
    ):
        resolve_model_file(configure(tmp_path, pipeline_config=str(tmp_path / "xl")))
    make_pipeline_2(tmp_path / "sd2")
    with pytest.raises(
        UserError, match=r"diffusers does not read it with the configs of .*; name a diffusers folder or"
    ):
        resolve_model_file(configure(tmp_path, pipeline_config=str(tmp_path / "sd2")))
    models = tmp_path / "runs/.lockstep/models"
    assert [path.name for path in models.iterdir()] == ["digests"]


def test_settings_that_cannot_be_had_are_told_with_the_cure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_file(tmp_path, make_pipeline)
    monkeypatch.setattr("launcher.hub.fetch.is_hub_up", lambda *_: False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(UserError) as refused:
        resolve_model_file(configure(tmp_path, pipeline_config=None))
    assert str(refused.value) == (
        "the configs of stable-diffusion-v1-5/stable-diffusion-v1-5: cannot be fetched: the hub does not answer and "
        "it is not in the cache (LocalEntryNotFoundError); write pipeline_config: a diffusers folder of the same "
        "family, or where there is a network: hf download stable-diffusion-v1-5/stable-diffusion-v1-5 "
        "--include '*.json' --include '*.txt' --include '*.model'"
    )
