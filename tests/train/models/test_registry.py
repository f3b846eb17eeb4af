"""The models behind one door: what training reads of one is what diffusers' own pipeline of the folder computes."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from torch.utils._pytree import tree_leaves
from torch.utils.data import default_collate
from transformers import CLIPTokenizer

from configs.errors import UserError
from configs.model_folder import read_pipeline_class
from configs.pipelines import PIPELINES, LatentShape
from configs.schema import RunConfig
from train.data.images import Crop
from train.engines.base import load_parameters
from train.models import MODELS, load_model
from train.models.base import DiffusionModel

CROP = Crop((40, 48), (0, 3), (32, 32))
CAPTION = "a red circle on a white background"
UNGUIDED = {"do_classifier_free_guidance": False}
NEAR = {"rtol": 1e-5, "atol": 1e-5}  # two copies of the same weights in memory: oneDNN rounds by where they lie


@pytest.fixture(params=["pipeline_folder", "pipeline_2_folder", "pipeline_xl_folder"])
def folder(request: pytest.FixtureRequest) -> Path:
    """Stable Diffusion 1, 2 and XL."""
    return request.getfixturevalue(request.param)


def load(folder: Path, **changes: object) -> DiffusionModel:
    config = RunConfig(name="a", model=str(folder), data={"images": "-"}, **({"precision": "fp32"} | changes))
    return load_model(config, folder, torch.device("cpu"))


def load_whole(folder: Path) -> DiffusionModel:
    """With the denoiser as an engine makes it."""
    model = load(folder)
    load_parameters(model.denoiser, model.weights, torch.float32, torch.device("cpu"))
    return model


def condition_of(model: DiffusionModel, *captions: str) -> dict[str, Any]:
    """What the denoiser is told of a micro-batch with these captions."""
    return model.condition(
        default_collate([model.read_caption(caption) | model.read_crop(CROP) for caption in captions])
    )


def test_planning_and_training_know_the_same_pipelines() -> None:
    assert MODELS.keys() == PIPELINES.keys()


def test_the_two_differ_as_stable_diffusion_1_and_2_do(pipeline_folder: Path, pipeline_2_folder: Path) -> None:
    one, two = load(pipeline_folder), load(pipeline_2_folder)
    assert type(one) is type(two)
    assert (one.noise_scheduler.config.prediction_type, two.noise_scheduler.config.prediction_type) == (
        "epsilon",
        "v_prediction",
    )
    assert condition_of(one, "")["encoder_hidden_states"].shape == (1, 77, 64)
    assert condition_of(two, "")["encoder_hidden_states"].shape == (1, 77, 96)
    assert one.read_caption("")["tokens"][0, -1] != two.read_caption("")["tokens"][0, -1], "what pads a caption"


@pytest.mark.parametrize("caption", [CAPTION, "", "many words " * 60])
def test_the_condition_is_the_pipelines_own(folder: Path, caption: str) -> None:
    model, pipeline = load(folder), DiffusionPipeline.from_pretrained(folder)
    with torch.no_grad():
        embedded = pipeline.encode_prompt(caption, device=torch.device("cpu"), num_images_per_prompt=1, **UNGUIDED)
    condition = condition_of(model, caption)
    expected = {"encoder_hidden_states": embedded[0]}
    if "added_cond_kwargs" in condition:
        told = condition.pop("added_cond_kwargs")
        assert told["time_ids"].tolist() == [[40, 48, 0, 3, 32, 32]]
        condition["text_embeds"], expected["text_embeds"] = told["text_embeds"], embedded[2]
        if not caption:  # the pipeline draws with zeros for an empty negative prompt, and reads an empty prompt
            expected = {name: torch.zeros_like(value) for name, value in expected.items()}
    assert condition.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(condition[name], value, **NEAR)


def test_latents_are_a_draw_of_the_vaes_posterior_and_decode_undoes_them(folder: Path) -> None:
    model, pipeline = load(folder), DiffusionPipeline.from_pretrained(folder)
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
    model, pipeline = load_whole(folder), DiffusionPipeline.from_pretrained(folder)
    x_t, t = torch.randn(2, 4, 8, 8), torch.tensor([3, 700])
    condition = condition_of(model, CAPTION, "")
    with torch.no_grad():
        predicted = model.denoiser(x_t, t, **condition, return_dict=False)[0]
        expected = pipeline.unet(x_t, t, **condition).sample
    torch.testing.assert_close(predicted, expected, **NEAR)


def test_training_draws_what_the_folders_own_pipeline_draws(folder: Path) -> None:
    model, pipeline = load_whole(folder), DiffusionPipeline.from_pretrained(folder)
    model.denoiser.eval()
    options = {"height": 32, "width": 32, "num_inference_steps": 3, "output_type": "latent"}
    drawn, expected = (
        pipe(CAPTION, generator=torch.Generator().manual_seed(0), **options).images
        for pipe in (model.pipeline(), pipeline)
    )
    torch.testing.assert_close(drawn, expected, rtol=1e-3, atol=1e-3)


def test_a_denoiser_without_weights_has_the_same_parameters(folder: Path) -> None:
    parameters = dict(load_whole(folder).denoiser.named_parameters())
    class_name = read_pipeline_class(folder / "model_index.json")
    empty = dict(MODELS[class_name].make_denoiser(folder).named_parameters())
    assert [(name, p.shape) for name, p in empty.items()] == [(name, p.shape) for name, p in parameters.items()]
    assert all(parameter.is_meta for parameter in empty.values())


def test_workers_get_no_weights(folder: Path) -> None:
    assert len(pickle.dumps(load(folder).read_caption)) < 1 << 20


def test_a_caption_is_tokenized_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By each of a model's tokenizers; and another model's tokenizer makes tokens of its own of it."""
    model, calls = load(folder), []
    tokenize = CLIPTokenizer.__call__
    counted = lambda *arguments, **options: calls.append(arguments[1]) or tokenize(*arguments, **options)  # noqa: E731
    monkeypatch.setattr(CLIPTokenizer, "__call__", counted)
    read_caption = pickle.loads(pickle.dumps(model.read_caption))  # as a worker process has it
    drawn = [read_caption(caption) for caption in ("", CAPTION, "", CAPTION)]
    tokenizers = len(drawn[0])
    assert calls == [""] * tokenizers + [CAPTION] * tokenizers
    for name in drawn[0]:
        assert torch.equal(drawn[0][name], drawn[2][name])
        assert torch.equal(drawn[1][name], drawn[3][name])
    assert load(folder).read_caption("")["tokens"].tolist() == drawn[0]["tokens"].tolist()
    assert len(calls) == 3 * tokenizers


def test_half_precision_is_the_denoisers_own_and_the_conditions(folder: Path) -> None:
    model = load(folder, precision="bf16")
    assert model.dtype == torch.bfloat16
    load_parameters(model.denoiser, model.weights, model.dtype, torch.device("cpu"))
    assert model.denoiser.dtype == torch.bfloat16
    condition = condition_of(model, CAPTION)
    real = [value for value in tree_leaves(condition) if value.is_floating_point()]
    assert {value.dtype for value in real} == {torch.bfloat16}
    latents = model.latents(
        {"pixels": torch.zeros(1, 3, 32, 32, dtype=torch.uint8), "posterior": torch.zeros(1, 4, 8, 8)}
    )
    assert latents.dtype == torch.float32


def test_another_pipeline_is_refused_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusion3Pipeline"}))
    with pytest.raises(UserError, match=r"is a StableDiffusion3Pipeline; this version trains StableDiffusionPipeline"):
        load(tmp_path)
