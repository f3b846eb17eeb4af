"""The models behind one door: what training reads of one is what diffusers' own pipeline of the folder computes."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from configs.errors import UserError
from configs.pipelines import PIPELINES, LatentShape
from configs.schema import RunConfig
from train.data.images import Crop
from train.engines.base import load_parameters
from train.models import MODELS, load_model
from train.models.base import DiffusionModel

CROP = Crop((40, 48), (0, 3))
CAPTION = "a red circle on a white background"
NEAR = {"rtol": 1e-5, "atol": 1e-5}  # two copies of the same weights in memory: oneDNN rounds by where they lie


@pytest.fixture(params=["pipeline_folder", "pipeline_2_folder"])
def folder(request: pytest.FixtureRequest) -> Path:
    """Stable Diffusion 1 and 2."""
    return request.getfixturevalue(request.param)


def load(folder: Path, **changes: object) -> DiffusionModel:
    config = RunConfig(name="a", model=str(folder), data={"images": "-"}, **({"precision": "fp32"} | changes))
    return load_model(config, folder, torch.device("cpu"))


def load_whole(folder: Path) -> DiffusionModel:
    """With the denoiser as an engine makes it."""
    model = load(folder)
    load_parameters(model.denoiser, model.weights, torch.float32, torch.device("cpu"))
    return model


def test_planning_and_training_know_the_same_pipelines() -> None:
    assert MODELS.keys() == PIPELINES.keys()


def test_the_two_differ_as_stable_diffusion_1_and_2_do(pipeline_folder: Path, pipeline_2_folder: Path) -> None:
    one, two = load(pipeline_folder), load(pipeline_2_folder)
    assert type(one) is type(two)
    assert (one.noise_scheduler.config.prediction_type, two.noise_scheduler.config.prediction_type) == (
        "epsilon",
        "v_prediction",
    )
    assert one.condition({"tokens": one.read_caption("")["tokens"][None]})["encoder_hidden_states"].shape == (1, 77, 64)
    assert two.condition({"tokens": two.read_caption("")["tokens"][None]})["encoder_hidden_states"].shape == (1, 77, 96)
    assert one.read_caption("")["tokens"][0, -1] != two.read_caption("")["tokens"][0, -1], "what pads a caption"


@pytest.mark.parametrize("caption", [CAPTION, "", "many words " * 60])
def test_the_condition_is_the_pipelines_own(folder: Path, caption: str) -> None:
    model, pipeline = load(folder), StableDiffusionPipeline.from_pretrained(folder)
    embedded, _ = pipeline.encode_prompt(caption, torch.device("cpu"), 1, do_classifier_free_guidance=False)
    condition = model.condition({"tokens": model.read_caption(caption)["tokens"][None]})
    assert condition.keys() == {"encoder_hidden_states"}
    torch.testing.assert_close(condition["encoder_hidden_states"], embedded, **NEAR)


def test_latents_are_a_draw_of_the_vaes_posterior_and_decode_undoes_them(folder: Path) -> None:
    model, pipeline = load(folder), StableDiffusionPipeline.from_pretrained(folder)
    pixels, posterior = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8), torch.randn(2, 4, 8, 8)
    with torch.no_grad():
        moments = pipeline.vae.encode(pixels / 127.5 - 1).latent_dist
        expected = (moments.mean + moments.std * posterior) * pipeline.vae.config.scaling_factor
        decoded = pipeline.vae.decode(expected / pipeline.vae.config.scaling_factor).sample
    latents = model.latents({"pixels": pixels, "posterior": posterior})
    torch.testing.assert_close(latents, expected, **NEAR)
    assert model.latent_shape(32, 32) == LatentShape(*latents.shape[1:])
    as_the_pipeline = pipeline.image_processor.postprocess(decoded, output_type="np")
    apart = np.abs(model.decode(latents).astype(int) - (as_the_pipeline * 255).round())
    assert apart.max() <= 1
    assert (apart > 0).mean() < 1e-3


def test_the_denoiser_takes_the_condition_as_it_is(folder: Path) -> None:
    model, pipeline = load_whole(folder), StableDiffusionPipeline.from_pretrained(folder)
    x_t, t = torch.randn(2, 4, 8, 8), torch.tensor([3, 700])
    condition = model.condition({"tokens": torch.stack([model.read_caption(CAPTION)["tokens"]] * 2)})
    with torch.no_grad():
        predicted = model.denoiser(x_t, t, **condition, return_dict=False)[0]
        expected = pipeline.unet(x_t, t, condition["encoder_hidden_states"]).sample
    torch.testing.assert_close(predicted, expected, **NEAR)


def test_training_draws_what_the_folders_own_pipeline_draws(folder: Path) -> None:
    model, pipeline = load_whole(folder), StableDiffusionPipeline.from_pretrained(folder)
    model.denoiser.eval()
    options = {"height": 32, "width": 32, "num_inference_steps": 3, "output_type": "latent"}
    drawn, expected = (
        pipe(CAPTION, generator=torch.Generator().manual_seed(0), **options).images
        for pipe in (model.pipeline(), pipeline)
    )
    torch.testing.assert_close(drawn, expected, rtol=1e-3, atol=1e-3)


def test_a_denoiser_without_weights_has_the_same_parameters(folder: Path) -> None:
    parameters = dict(load_whole(folder).denoiser.named_parameters())
    empty = dict(MODELS["StableDiffusionPipeline"].make_denoiser(folder).named_parameters())
    assert [(name, p.shape) for name, p in empty.items()] == [(name, p.shape) for name, p in parameters.items()]
    assert all(parameter.is_meta for parameter in empty.values())


def test_workers_get_no_weights(folder: Path) -> None:
    assert len(pickle.dumps(load(folder).read_caption)) < 1 << 20


def test_a_caption_is_tokenized_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And another model's tokenizer makes tokens of its own of it."""
    model, calls = load(folder), []
    tokenize = type(model.tokenizer).__call__
    counted = lambda *arguments, **options: calls.append(arguments[1]) or tokenize(*arguments, **options)  # noqa: E731
    monkeypatch.setattr(type(model.tokenizer), "__call__", counted)
    read_caption = pickle.loads(pickle.dumps(model.read_caption))  # as a worker process has it
    drawn = [read_caption(caption)["tokens"] for caption in ("", CAPTION, "", CAPTION)]
    assert calls == ["", CAPTION]
    assert torch.equal(drawn[0], drawn[2])
    assert torch.equal(drawn[1], drawn[3])
    assert load(folder).read_caption("")["tokens"].tolist() == drawn[0].tolist()
    assert len(calls) == 3


def test_half_precision_is_the_denoisers_own_and_the_conditions(folder: Path) -> None:
    model = load(folder, precision="bf16")
    assert model.dtype == torch.bfloat16
    load_parameters(model.denoiser, model.weights, model.dtype, torch.device("cpu"))
    assert model.denoiser.dtype == torch.bfloat16
    condition = model.condition({"tokens": model.read_caption(CAPTION)["tokens"][None]})
    assert condition["encoder_hidden_states"].dtype == torch.bfloat16
    latents = model.latents(
        {"pixels": torch.zeros(1, 3, 32, 32, dtype=torch.uint8), "posterior": torch.zeros(1, 4, 8, 8)}
    )
    assert latents.dtype == torch.float32


def test_another_pipeline_is_refused_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionXLPipeline"}))
    with pytest.raises(UserError, match=r"is a StableDiffusionXLPipeline; this version trains StableDiffusionPipeline"):
        load(tmp_path)
