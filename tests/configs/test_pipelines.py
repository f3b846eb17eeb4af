"""What planning knows of a pipeline folder without torch: which one it is, and whether it is whole."""

from pathlib import Path

import pytest

from configs.errors import UserError
from configs.model_folder import check_model_folder
from configs.pipelines import PIPELINES, LatentShape
from tests.launcher.folders import make_model_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_model_folder(tmp_path / "model")
    return tmp_path / "model"


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
