"""A model in one file is turned once into a diffusers folder, which is found again by what the file holds."""

import os
import shutil
import stat
from pathlib import Path

import pytest
import torch

from configs.errors import UserError
from configs.schema import RunConfig
from launcher.hub.model_file import find_model_folder, resolve_model_file
from tests.tiny import make_pipeline, make_pipeline_2, make_pipeline_xl
from tests.weights import read_part_weights
from train.checkpoint.single_file import write_single_file


def configure(folder: Path, name: str = "one.safetensors", **changes: object) -> RunConfig:
    settings = {"model": str(folder / name), "pipeline_config": str(folder / "settings"), "runs": str(folder / "runs")}
    return RunConfig(**({"name": "a", "data": {"images": "-"}} | settings | changes))


def make_file(folder: Path) -> Path:
    """`one.safetensors`, and beside it `settings`, the same pipeline without a weight. Answers the pipeline."""
    pipeline = make_pipeline(folder / "pipeline")
    write_single_file(pipeline, folder / "one.safetensors", torch.float32, "one", 32)
    shutil.copytree(pipeline, folder / "settings", ignore=shutil.ignore_patterns("*.safetensors"))
    return pipeline


def test_it_is_turned_once_and_found_again_by_what_it_holds(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pipeline = make_file(tmp_path)
    config = configure(tmp_path)
    assert find_model_folder(config) is None
    left_over = tmp_path / "runs/.lockstep/models/.killed-0"
    left_over.mkdir(parents=True)
    os.utime(left_over, (0, 0))
    folder = resolve_model_file(config)
    assert folder.parent == tmp_path / "runs/.lockstep/models"
    expected, found = read_part_weights(pipeline), read_part_weights(folder)
    mode = stat.S_IMODE(folder.stat().st_mode) & 0o666
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*.*") if path.is_file()} == {mode}
    assert not left_over.exists(), "a day later nobody works on it"
    assert found.keys() == expected.keys()
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []
    assert f"turning {config.model} into a diffusers folder, once: {folder}\n" in capfd.readouterr().out
    moved = tmp_path / "elsewhere.safetensors"
    shutil.copy(tmp_path / "one.safetensors", moved)
    for again in (config, configure(tmp_path, moved.name)):
        assert resolve_model_file(again) == find_model_folder(again) == folder
    os.utime(moved)
    assert find_model_folder(configure(tmp_path, moved.name)) is None, "nobody has looked into it since"
    assert resolve_model_file(configure(tmp_path, moved.name)) == folder
    assert "turning" not in capfd.readouterr().out


def test_settings_that_do_not_fit_leave_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    make_file(tmp_path)
    make_pipeline_xl(tmp_path / "xl")
    with pytest.raises(
        UserError, match=r"is a StableDiffusionXLPipeline, and .* a StableDiffusionPipeline; name another"
    ):
        resolve_model_file(configure(tmp_path, pipeline_config=str(tmp_path / "xl")))
    make_pipeline_2(tmp_path / "sd2")
    with pytest.raises(UserError, match=r"was not turned into a diffusers folder, so there is nothing to start from"):
        resolve_model_file(configure(tmp_path, pipeline_config=str(tmp_path / "sd2")))
    last = capfd.readouterr().err.splitlines()[-1]
    assert last.startswith(
        f"{tmp_path}/one.safetensors: diffusers does not read it with the configs of {tmp_path}/sd2 ("
    )
    assert last.endswith("name a diffusers folder or a hub id of the same family with pipeline_config")
    models = tmp_path / "runs/.lockstep/models"
    assert [path.name for path in models.iterdir()] == ["digests"]


def test_settings_that_cannot_be_had_are_told_with_the_cure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_file(tmp_path)
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
