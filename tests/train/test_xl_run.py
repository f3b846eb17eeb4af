"""A tiny Stable Diffusion XL through real attempts: with a cache and without, from plain weights and from a variant,
killed and resumed on another shape, the same curve; and its export is a pipeline that draws."""

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline

from configs.schema import RunConfig
from store.run.run_dir import RunDir
from tests.runs import new_run, read_losses
from tests.train.attempts import KILL_IN_SECOND_SAVE, make_attempt
from train.models import load_model

STEPS = 6
LONG = "a red circle on a white background, " * 12


def start_run(folder: Path, pipeline: Path, images: Path, **changes: Any) -> RunDir:
    data = {"images": str(images), "resolution": 32, "crop": "random", "crops": 2, "flip": True, "workers": 0}
    data |= {"caption_tokens": 150, "caption_dropout": 0.3, "size_dropout": 0.2} | changes.pop("data", {})
    return new_run(folder, pipeline, images, data=data, steps=STEPS, checkpoint={"every_steps": 2}, **changes)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, pipeline_xl_folder: Path) -> Path:
    """In fp32, every weight a number that fp16 has."""
    folder = tmp_path_factory.mktemp("plain") / "model"
    pipeline = StableDiffusionXLPipeline.from_pretrained(pipeline_xl_folder, torch_dtype=torch.float16)
    pipeline.to(torch.float32).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def variant(tmp_path_factory: pytest.TempPathFactory, plain: Path) -> Path:
    """The same weights as files of the variant fp16, the UNet's in several; plain ones lie there for the VAE alone."""
    folder = tmp_path_factory.mktemp("variant") / "model"
    pipeline = StableDiffusionXLPipeline.from_pretrained(plain, torch_dtype=torch.float16)
    pipeline.save_pretrained(folder, variant="fp16", max_shard_size="300KB")
    assert len(list((folder / "unet").glob("*.safetensors"))) > 1
    (folder / "vae/diffusion_pytorch_model.fp16.safetensors").unlink()
    shutil.copy(plain / "vae/diffusion_pytorch_model.safetensors", folder / "vae")
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, plain: Path, image_folder: Path) -> RunDir:
    """Trained in one go on one rank, from a cache of latents and states, with pictures."""
    folder = tmp_path_factory.mktemp("xl")
    pictures = {"every_steps": STEPS, "prompts": ["a red circle", LONG], "timesteps": 2}
    cached = {"cache": "all", "cache_folder": str(folder / "cache")}
    run = start_run(folder / "whole", plain, image_folder, data=cached, micro_batch=6, pictures=pictures)
    make_attempt(run, 1)
    return run


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory, variant: Path, image_folder: Path) -> RunDir:
    """The same run from a variant, without a cache, by another engine, killed on two ranks and resumed on one."""
    settings = {"micro_batch": 3, "engine": "fsdp2", "variant": "fp16"}
    folder = tmp_path_factory.mktemp("xl") / "parts"
    run = start_run(folder, variant, image_folder, data={"cache": "off"}, **settings)
    assert make_attempt(run, 2, KILL_IN_SECOND_SAVE) != [0, 0]
    make_attempt(run, 1)
    return run


def test_it_is_the_same_run_without_a_cache_and_resumed_on_another_shape(whole: RunDir, parts: RunDir) -> None:
    assert len(read_losses(whole)) == STEPS
    np.testing.assert_allclose(read_losses(parts), read_losses(whole), rtol=1e-5)


def test_the_export_of_a_variant_has_plain_names(whole: RunDir, parts: RunDir) -> None:
    ours, theirs = (
        {path.relative_to(run.pipeline_path).as_posix() for path in run.pipeline_path.rglob("*.*")}
        for run in (parts, whole)
    )
    assert ours == theirs
    pipeline, expected = (
        StableDiffusionXLPipeline.from_pretrained(run.pipeline_path, torch_dtype=torch.float32)
        for run in (parts, whole)
    )
    for name in ("vae", "text_encoder", "text_encoder_2"):
        wanted = expected.components[name].state_dict()
        assert all(torch.equal(value, wanted[key]) for key, value in pipeline.components[name].state_dict().items())


def test_the_export_draws_by_the_pipeline_of_its_name(whole: RunDir, plain: Path) -> None:
    pipeline = StableDiffusionXLPipeline.from_pretrained(whole.pipeline_path)
    base = StableDiffusionXLPipeline.from_pretrained(plain)
    options = {"height": 32, "width": 32, "num_inference_steps": 2}
    drawn, before = (
        each("a red circle", generator=torch.Generator().manual_seed(0), **options).images[0]
        for each in (pipeline, base)
    )
    assert drawn.size == (32, 32)
    assert np.abs(np.asarray(drawn).astype(int) - np.asarray(before)).max() > 0, "it was trained"
    assert pipeline.config.force_zeros_for_empty_prompt
    assert type(pipeline.scheduler) is type(base.scheduler)
    assert len(list(whole.pictures_path_at(STEPS).glob("*.png"))) == 2


def test_the_card_says_what_it_is_and_reads_long_prompts_as_training_does(whole: RunDir, plain: Path) -> None:
    card = (whole.pipeline_path / "README.md").read_text()
    assert f"Stable Diffusion XL: `{plain.name}`, its UNet fine-tuned" in card, "and not where it lies here"
    assert "| sizes and crop | told, as zeros for 0.2 of the samples |" in card
    assert "- stable-diffusion-xl\n" in card
    first, second = re.findall("```python\n(.*?)```", card, re.DOTALL)
    program = (first + second).replace("path/to/this/folder", str(whole.pipeline_path))
    namespace: dict[str, Any] = {}
    exec(re.sub(r"^image = .*$", "", program, flags=re.MULTILINE), namespace)
    data = {"images": "-", "caption_tokens": 150}
    config = RunConfig(name="a", model=str(plain), data=data, precision="fp32")
    told = load_model(config, plain, torch.device("cpu")).embed_prompt(LONG)
    states, pooled = namespace["embed"](LONG)
    assert torch.equal(states, told["prompt_embeds"])
    assert torch.equal(pooled, told["pooled_prompt_embeds"])
    assert torch.equal(namespace["empty"], told["negative_prompt_embeds"])
    assert torch.equal(namespace["negative"]["negative_pooled_prompt_embeds"], told["negative_pooled_prompt_embeds"])
