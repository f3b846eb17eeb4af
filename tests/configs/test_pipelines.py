"""What planning knows of a pipeline folder without torch: which one it is, whether it is whole, what it predicts."""

import json
from pathlib import Path

import pytest

from configs.errors import UserError
from configs.model_folder import check_model_folder
from configs.pipelines import PIPELINES, LatentShape, check_objective
from configs.schema import RunConfig
from tests.launcher.folders import make_model_folder


def config(**changes: object) -> RunConfig:
    return RunConfig(name="a", model="m", data={"images": "-"}, **changes)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_model_folder(tmp_path / "model")
    return tmp_path / "model"


def write_scheduler(folder: Path, settings: object) -> None:
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(settings))


def test_a_whole_folder_says_which_pipeline_it_is(folder: Path) -> None:
    assert check_model_folder(folder) == "StableDiffusionPipeline"


@pytest.mark.parametrize("index", ["[]", "{}", "not json", '{"_class_name": ["StableDiffusionPipeline"]}', "\udcff"])
def test_an_index_that_names_no_pipeline_is_refused(folder: Path, index: str) -> None:
    (folder / "model_index.json").write_bytes(index.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=r"model_index\.json: is no pipeline's index \(.*; fetch it again"):
        check_model_folder(folder)


@pytest.mark.parametrize("pipeline", PIPELINES.values(), ids=PIPELINES)
def test_the_trained_part_is_no_frozen_part_and_every_weight_is_a_parts(pipeline) -> None:
    assert pipeline.trained not in pipeline.frozen
    assert (
        set(pipeline.weights) <= set(pipeline.configs) == {pipeline.trained, *pipeline.frozen} - set(pipeline.optional)
    )


@pytest.mark.parametrize(
    ("blocks", "pixels", "latents"),
    [
        ([128, 256, 512, 512], (512, 512), (64, 64)),
        ([128, 256, 512, 512], (640, 384), (80, 48)),
        ([8] * 3, (32, 40), (8, 10)),
    ],
)
def test_latents_are_as_much_smaller_as_the_vae_halves_them(
    blocks: list[int], pixels: tuple[int, int], latents: tuple[int, int]
) -> None:
    vae = {"block_out_channels": blocks, "latent_channels": 4}
    assert LatentShape.of_vae(vae, *pixels) == LatentShape(4, *latents)


@pytest.mark.parametrize(
    ("scheduler", "changes", "prediction"),
    [
        ({}, {}, "epsilon"),
        ({"prediction_type": "v_prediction"}, {}, "v_prediction"),
        ({"prediction_type": "v_prediction"}, {"prediction": "epsilon"}, "epsilon"),
        ({"prediction_type": "flow"}, {"prediction": "sample"}, "sample"),
        ({"rescale_betas_zero_snr": True}, {}, "epsilon"),
        ({"rescale_betas_zero_snr": True}, {"prediction": "v_prediction", "loss_weighting": "min_snr"}, "v_prediction"),
    ],
)
def test_what_is_predicted(folder: Path, scheduler: object, changes: dict, prediction: str) -> None:
    write_scheduler(folder, scheduler)
    assert check_objective(config(**changes), folder) == prediction


def test_a_prediction_without_a_loss_is_refused(folder: Path) -> None:
    write_scheduler(folder, {"prediction_type": "flow"})
    with pytest.raises(UserError, match="predicts flow; write prediction: epsilon or v_prediction or sample"):
        check_objective(config(), folder)


def test_a_weighting_without_a_weight_is_refused_before_anything_is_queued(folder: Path) -> None:
    write_scheduler(folder, {"rescale_betas_zero_snr": True})
    with pytest.raises(UserError, match=r"rescale_betas_zero_snr .* write prediction: v_prediction or sample, or "):
        check_objective(config(loss_weighting="min_snr"), folder)


@pytest.mark.parametrize("text", ["", "[]", "{"])
def test_a_scheduler_that_does_not_read_is_refused(folder: Path, text: str) -> None:
    (folder / "scheduler" / "scheduler_config.json").write_text(text)
    with pytest.raises(UserError, match=r"scheduler_config\.json: cannot be read .*; fetch the model again"):
        check_objective(config(), folder)
