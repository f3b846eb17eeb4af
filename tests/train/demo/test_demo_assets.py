"""The demo's image set and base model: what they promise before anything is trained."""

import filecmp
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from PIL import Image

from configs.reading.load import load_config
from store.dataset.build import build_index
from store.dataset.sources.image_folder import ImageFolder
from train.demo import grid, shapes

BASE = Path(shapes.__file__).parent / "base"


@pytest.fixture(scope="module")
def image_set(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "images"
    shapes.write_images(folder, seed=0)
    return folder


@pytest.fixture(scope="module")
def samples(image_set):
    return [*build_index([ImageFolder(image_set)], None).index]


@pytest.fixture(scope="module")
def true_images(image_set, samples):
    return [Image.open(image_set / sample.name) for sample in samples]


def test_the_same_seed_writes_the_same_bytes(image_set, tmp_path):
    count = shapes.write_images(tmp_path / "again", seed=0)
    names = [path.name for path in image_set.iterdir()]
    same, different, failed = filecmp.cmpfiles(image_set, tmp_path / "again", names, shallow=False)
    assert (len(same), different, failed) == (count + 1, [], [])  # and metadata.jsonl

    shapes.write_images(tmp_path / "other", seed=1)
    assert filecmp.cmpfiles(image_set, tmp_path / "other", names, shallow=False)[0] == ["metadata.jsonl"]


def test_the_image_set_is_a_dataset_as_ours_are(image_set, samples):
    assert build_index([ImageFolder(image_set)], None).bad_samples == []
    assert len(samples) == 384
    assert {sample.captions[0] for sample in samples} >= set(shapes.PROMPTS)


def test_the_recipe_is_a_config_whose_pictures_ask_for_what_the_images_show(image_set, samples):
    recipe = shutil.copy(BASE.parent / "shapes.yaml", image_set.parent / "demo.yaml")
    config = load_config(recipe)
    assert config.batch == 32
    assert config.data.resolution == shapes.SIZE
    assert config.pictures is not None
    assert set(config.pictures.prompts) <= {sample.captions[0] for sample in samples}


def test_the_prompts_ask_for_every_colour_twice():
    asked = [shapes.read_colour(prompt) for prompt in shapes.PROMPTS]
    assert sorted(asked) == sorted([*shapes.COLOURS] * 2)
    assert len(set(shapes.PROMPTS)) == 16


def test_the_colour_check_is_right_on_the_true_images(samples, true_images):
    assert shapes.measure_agreement(true_images, [sample.captions[0] for sample in samples]) == 1.0


def test_the_colour_check_looks_at_the_shape_and_not_at_the_background():
    for background in [(255, 255, 255), (0, 0, 0), (128, 128, 128), (200, 120, 60), (40, 90, 60)]:
        for colour, rgb in shapes.COLOURS.items():
            image = shapes.draw_shape("cross", rgb, background, (16, 16), 8)
            assert shapes.detect_colour(image) == colour, (colour, background)


def test_the_colour_check_survives_noise_and_faint_colours():
    rng = np.random.default_rng(0)
    for colour, rgb in shapes.COLOURS.items():
        faded = tuple(round(0.8 * channel + 0.2 * 128) for channel in rgb)
        image = np.asarray(shapes.draw_shape("circle", faded, (245, 245, 245), (14, 18), 9), dtype=float)
        noisy = np.clip(image + rng.normal(0, 12, image.shape), 0, 255).astype(np.uint8)
        assert shapes.detect_colour(Image.fromarray(noisy)) == colour


def test_the_base_is_small_and_whole():
    files = [path for path in BASE.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 8e6
    assert {"model_index.json", "vocab.json", "merges.txt"} <= {path.name for path in files}
    assert not [path for path in files if path.suffix in {".bin", ".pt", ".ckpt"}]  # nothing that is unpickled
    index = json.loads((BASE / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionPipeline"
    assert index["safety_checker"] == index["feature_extractor"] == [None, None]


def test_the_vae_reconstructs_the_image_set(true_images):
    vae = AutoencoderKL.from_pretrained(BASE / "vae")
    stacked = np.stack([np.asarray(image) for image in true_images])
    pixels = torch.from_numpy(stacked).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        latents = vae.encode(pixels).latent_dist.mean
        error = (vae.decode(latents).sample.clamp(-1, 1) - pixels) * 127.5  # in the 255 levels of a channel
    psnr = 10 * torch.log10(255**2 / error.square().mean())
    assert latents.shape[1:] == (4, 8, 8)
    assert psnr > 25
    assert error.abs().mean() < 6
    assert 0.7 < (latents * vae.config.scaling_factor).std() < 1.4


def test_the_base_speaks_the_captions_words_and_draws_no_colours():
    pipeline = StableDiffusionPipeline.from_pretrained(BASE)
    assert pipeline.tokenizer.model_max_length == 77
    assert pipeline.tokenizer.tokenize(shapes.PROMPTS[0])[1] == "red</w>"
    assert pipeline.vae_scale_factor == 4
    assert sum(parameter.numel() for parameter in pipeline.unet.parameters()) < 1.2e6

    images = grid.draw_prompts(BASE, shapes.PROMPTS, list(range(16)), timesteps=10, guidance=2.0, side=32)
    assert shapes.measure_agreement(images, shapes.PROMPTS) <= 3 / 16  # chance is 2 of 16
    colourfulness = [np.ptp(np.asarray(image, dtype=float), axis=-1).mean() for image in images]
    assert max(colourfulness) < 25
    contrast = [np.asarray(image.convert("L"), dtype=float).std() for image in images]
    assert min(contrast) > 15  # there is a shape
    sheet = grid.arrange_grid(images, shapes.PROMPTS)
    assert sheet.width > 4 * grid.CELL
    assert sheet.height > 4 * grid.CELL


def test_a_picture_depends_on_its_own_seed_and_not_on_its_neighbours():
    together = grid.draw_prompts(BASE, shapes.PROMPTS[:2], [7, 8], timesteps=2, guidance=2.0, side=32)
    alone = grid.draw_prompts(BASE, shapes.PROMPTS[1:2], [8], timesteps=2, guidance=2.0, side=32)
    difference = np.asarray(together[1], dtype=int) - np.asarray(alone[0], dtype=int)
    assert np.abs(difference).max() <= 1
