"""A model that cannot be trained is told by its files' names and its parts' configs, before a weight is read."""

import json
from pathlib import Path

import pytest

from configs.errors import UserError
from configs.known_models import KNOWN_MODELS, SDXL
from configs.model_folder import check_known_model, check_model_folder, check_part_configs, find_commit_name
from configs.pipelines import PIPELINES, check_told, name_family
from configs.schema import RunConfig
from tests.launcher.folders import make_model_folder

XL = "StableDiffusionXLPipeline"


@pytest.fixture(params=PIPELINES)
def class_name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def folder(tmp_path: Path, class_name: str) -> Path:
    make_model_folder(tmp_path / "model", class_name)
    return tmp_path / "model"


def change(folder: Path, part: str, **changes: object) -> None:
    path = folder / part / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_the_whole_folder_of_every_class_is_taken(folder: Path, class_name: str) -> None:
    assert check_model_folder(folder) == class_name


@pytest.mark.parametrize(
    ("part", "changes", "problem"),
    [
        ("unet", {"in_channels": 9}, "takes 9 channels, as inpainting takes, and latents have 4; start from the"),
        ("unet", {"in_channels": 8}, "takes 8 channels, and latents have 4"),
        ("unet", {"time_cond_proj_dim": 256}, "is told the guidance scale, as a latent consistency model is"),
        ("unet", {"num_class_embeds": 1000}, "has num_class_embeds: 1000, and is told more than a caption"),
        ("unet", {"encoder_hid_dim_type": "image_proj"}, "has encoder_hid_dim_type: image_proj"),
        ("unet", {"addition_embed_type": "text"}, "addition_embed_type: text is not what a Stable Diffusion"),
        ("vae", {"latents_mean": [0, 0, 0, 0]}, "latents_mean and latents_std are of models with another noise"),
    ],
)
def test_a_part_of_another_kind_is_refused(folder: Path, part: str, changes: dict, problem: str) -> None:
    change(folder, part, **changes)
    with pytest.raises(UserError, match=rf"model/{part}/config.json: .*{problem}"):
        check_model_folder(folder)


def test_a_refiner_under_another_name_is_refused(tmp_path: Path) -> None:
    """It is told five numbers of an image, an aesthetic score among them."""
    make_model_folder(tmp_path / "model", XL)
    change(tmp_path / "model", "unet", projection_class_embeddings_input_dim=5 * 8 + 512)
    with pytest.raises(UserError, match=r"is told 552 numbers .* are 560, .* \(a refiner, say\)"):
        check_model_folder(tmp_path / "model")


def test_the_real_configs_are_taken(tmp_path: Path) -> None:
    make_model_folder(tmp_path, XL)
    change(tmp_path, "unet", **SDXL.configs["unet"])
    change(tmp_path, "text_encoder_2", projection_dim=1280)
    check_part_configs(tmp_path, PIPELINES[XL])


@pytest.mark.parametrize("text", ["", "[]", "{"])
def test_a_config_that_does_not_read_is_refused(folder: Path, text: str) -> None:
    (folder / "unet" / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"unet/config.json: cannot be read \(.*; fetch the model again"):
        check_model_folder(folder)


@pytest.mark.parametrize(
    ("model", "problem"),
    [
        ("stabilityai/stable-diffusion-xl-refiner-1.0", "is a StableDiffusionXLImg2ImgPipeline; this version trains"),
        ("diffusers/stable-diffusion-xl-1.0-inpainting-0.1", "is a StableDiffusionXLInpaintPipeline"),
        ("stabilityai/stable-diffusion-2-inpainting", "is a StableDiffusionInpaintPipeline"),
        ("stabilityai/stable-diffusion-3-medium-diffusers", "is a StableDiffusion3Pipeline"),
        ("black-forest-labs/FLUX.1-dev", "is a FluxPipeline"),
        ("SimianLuo/LCM_Dreamshaper_v7", "is a LatentConsistencyModelPipeline"),
        ("stabilityai/sdxl-turbo", "is distilled .* start from stabilityai/stable-diffusion-xl-base-1.0"),
    ],
)
def test_known_models_that_are_not_trained(model: str, problem: str) -> None:
    with pytest.raises(UserError, match=f"{model}: {problem}"):
        check_known_model(model)


def test_all_other_known_models_are_taken() -> None:
    for model, known in KNOWN_MODELS.items():
        if known.class_name in PIPELINES and known.distilled_from is None:
            check_known_model(model)
            assert known.parameters.keys() >= PIPELINES[known.class_name].weights.keys()
    check_known_model("me/unheard-of")


def move(folder: Path, part: str, *words: str) -> None:
    """Give a part's weights the file names that these words make of theirs."""
    (path,) = (folder / part).glob("*.safetensors")
    for word in words:
        path.with_name(f"{path.stem}.{word}{path.suffix}").write_text("")
    path.unlink()


def test_a_variant_is_taken_where_it_is_and_plain_weights_elsewhere(folder: Path, class_name: str) -> None:
    move(folder, "unet", "fp16", "bf16")
    assert check_model_folder(folder, "fp16") == class_name
    assert check_model_folder(folder, "bf16") == class_name
    with pytest.raises(UserError, match=r"unet: lacks .* it holds .*; write variant: bf16"):
        check_model_folder(folder)
    move(folder, "vae", "fp16")
    with pytest.raises(UserError, match=r"vae: lacks .*; write variant: fp16"):
        check_model_folder(folder, "bf16")
    with pytest.raises(UserError, match="no part has weights of the variant fp8; leave variant out, or write another"):
        check_model_folder(folder, "fp8")


def test_a_variant_in_several_files_is_found_by_its_index(folder: Path) -> None:
    (path,) = (folder / "unet").glob("*.safetensors")
    path.rename(path.with_name(f"{path.stem}.fp16-00001-of-00002.safetensors"))
    with pytest.raises(UserError, match=r"write variant: fp16"):
        check_model_folder(folder)
    path.with_name(f"{path.name}.index.fp16.json").write_text("{}")
    check_model_folder(folder, "fp16")


def test_only_a_model_that_is_told_sizes_drops_them(class_name: str) -> None:
    config = RunConfig(name="a", model="m", data={"images": "-", "size_dropout": 0.1})
    if class_name == XL:
        check_told(config, class_name)
    else:
        with pytest.raises(UserError, match=r"data.size_dropout: 0.1 .* is told nothing; leave it out"):
            check_told(config, class_name)
    check_told(config.model_copy(update={"data": config.data.model_copy(update={"size_dropout": 0.0})}), class_name)


@pytest.mark.parametrize(
    ("class_name", "width", "family"),
    [
        ("StableDiffusionPipeline", 768, "Stable Diffusion 1"),
        ("StableDiffusionPipeline", 1024, "Stable Diffusion 2"),
        ("StableDiffusionPipeline", 64, "Stable Diffusion 1 or 2"),
        (XL, 2048, "Stable Diffusion XL"),
    ],
)
def test_the_family_by_its_name(class_name: str, width: int, family: str) -> None:
    assert name_family(class_name, {"cross_attention_dim": width}) == family


def test_the_commit_of_a_snapshot() -> None:
    commit = "0123456789" * 4
    assert find_commit_name(Path("/hub/models--me--mine/snapshots") / commit) == commit
    assert find_commit_name(Path("/models") / commit) is None
    assert find_commit_name(Path("/hub/models--me--mine/snapshots/main")) is None
