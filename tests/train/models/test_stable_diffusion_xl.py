"""Stable Diffusion XL: what it is told of captions and crops, and what an empty caption is."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from PIL import Image
from torch.utils.data import default_collate

from configs.schema import RunConfig
from store.dataset.build import build_index
from store.dataset.sources.image_folder import ImageFolder
from train.data.encodings import collate_samples
from train.data.images import NOTHING_TOLD, Crop
from train.data.stream import Stream
from train.models import load_model
from train.models.base import DiffusionModel
from train.models.stable_diffusion_xl import StableDiffusionXL
from train.models.vae import FrozenVae

CPU = torch.device("cpu")
CAPTION = "a red circle on a white background"
LONG = "a red circle on white " * 30  # 150 tokens


def load(folder: Path, **changes: object) -> StableDiffusionXL:
    data = {"images": "-"} | changes.pop("data", {})
    config = RunConfig(name="a", model=str(folder), data=data, **({"precision": "fp32"} | changes))
    model = load_model(config, folder, CPU)
    assert isinstance(model, StableDiffusionXL)
    return model


def read(model: DiffusionModel, *captions: str) -> dict[str, torch.Tensor]:
    """A micro-batch of these captions."""
    return default_collate([model.read_caption(caption) | model.read_crop(NOTHING_TOLD) for caption in captions])


def change_index(folder: Path, to: Path, **changes: object) -> Path:
    """A copy of the pipeline; None takes a key out of its index."""
    shutil.copytree(folder, to)
    index = json.loads((to / "model_index.json").read_text()) | changes
    (to / "model_index.json").write_text(json.dumps({key: value for key, value in index.items() if value is not None}))
    return to


@pytest.mark.parametrize(("key", "zeros"), [(True, True), (False, False), (None, True)])
def test_an_empty_caption_is_what_the_pipeline_draws_with(
    tmp_path: Path, pipeline_xl_folder: Path, key: bool | None, zeros: bool
) -> None:
    """As its index says, or else as diffusers has it; every other caption is read."""
    folder = change_index(pipeline_xl_folder, tmp_path / "model", force_zeros_for_empty_prompt=key)
    model, pipeline = load(folder), StableDiffusionXLPipeline.from_pretrained(folder)
    empty = pipeline.encode_prompt(CAPTION, device=CPU)[1::2]
    read_empty = pipeline.encode_prompt("", device=CPU)[::2]
    condition = model.condition(read(model, "", "   ", "!", CAPTION))
    for told, wanted, other in zip(
        (condition["encoder_hidden_states"], condition["added_cond_kwargs"]["text_embeds"]),
        empty,
        read_empty,
        strict=True,
    ):
        assert wanted.any() != zeros
        torch.testing.assert_close(told[:2], torch.cat([wanted] * 2), rtol=1e-5, atol=1e-5)
        assert not torch.equal(other, torch.zeros_like(other))
        assert told[2].any()
        assert told[3].any()
    if not zeros:
        torch.testing.assert_close(condition["encoder_hidden_states"][:1], read_empty[0], rtol=1e-5, atol=1e-5)


def test_of_a_long_caption_all_states_and_the_first_pooled_embedding(pipeline_xl_folder: Path) -> None:
    model = load(pipeline_xl_folder, data={"caption_tokens": 225})
    pipeline = StableDiffusionXLPipeline.from_pretrained(pipeline_xl_folder)
    words = LONG.split()
    texts = [" ".join(words[:75]), " ".join(words[75:100]), ""]
    expected = [pipeline.encode_prompt(text, device=CPU) for text in texts]
    condition = model.condition(read(model, " ".join(words[:100]), ""))
    states, pooled = condition["encoder_hidden_states"], condition["added_cond_kwargs"]["text_embeds"]
    assert states.shape == (2, 3 * 77, 32 + 48)
    torch.testing.assert_close(states[:1], torch.cat([each[0] for each in expected], 1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(pooled[:1], expected[0][2], rtol=1e-5, atol=1e-5)
    assert not states[1].any(), "an empty caption is zeros in all its chunks"
    assert not pooled[1].any()


def test_states_from_the_cache_tell_the_same(pipeline_xl_folder: Path) -> None:
    """Also where only some samples of a micro-batch have them."""
    model = load(pipeline_xl_folder)
    captions = [CAPTION, "", "a blue square", CAPTION]
    plain = read(model, *captions)
    states = model.states(plain)
    crop = model.read_crop(Crop((40, 48), (0, 3), (32, 32)))
    samples = [
        crop | ({"states": row} if number % 2 else model.read_caption(caption))
        for number, (caption, row) in enumerate(zip(captions, states, strict=True))
    ]
    mixed, cached = collate_samples(samples), collate_samples([crop | {"states": row} for row in states])
    wanted = model.condition(plain | {"time_ids": crop["time_ids"].expand(4, 6)})
    for batch in (mixed, cached):
        told = model.condition(batch)
        # passes of two captions and of four: kernels may sum in another order
        torch.testing.assert_close(told["encoder_hidden_states"], wanted["encoder_hidden_states"], rtol=1e-5, atol=1e-5)
        for name, value in wanted["added_cond_kwargs"].items():
            torch.testing.assert_close(told["added_cond_kwargs"][name], value, rtol=1e-5, atol=1e-5)


def test_what_decides_the_states_is_in_their_family(tmp_path: Path, pipeline_xl_folder: Path) -> None:
    base = load(pipeline_xl_folder).describe_encoder("states")
    read_empty = change_index(pipeline_xl_folder, tmp_path / "read", force_zeros_for_empty_prompt=False)
    other_part = change_index(pipeline_xl_folder, tmp_path / "part")
    config = other_part / "text_encoder_2" / "config.json"
    config.write_text(config.read_text() + "\n")
    others = [
        load(read_empty).describe_encoder("states"),
        load(other_part).describe_encoder("states"),
        load(pipeline_xl_folder, precision="bf16").describe_encoder("states"),
        load(pipeline_xl_folder, data={"caption_tokens": 150}).describe_encoder("states"),
    ]
    assert base == load(pipeline_xl_folder).describe_encoder("states")
    assert len({json.dumps(facts, sort_keys=True) for facts in [base, *others]}) == 5
    assert base.keys() >= {"tokens", "tokens_2", "text_encoder weights", "text_encoder_2 weights", "empty"}


@pytest.mark.parametrize(
    ("size", "data", "expected"),
    [
        # 300 × 200 at side 32 is 48 × 32, and 200 × 300 is 32 × 48: 16 pixels are cut away, 8 on each side
        ((300, 200), {}, [[200, 300, 0, 8, 32, 32]]),
        ((200, 300), {}, [[300, 200, 8, 0, 32, 32]]),
        ((300, 200), {"flip": True}, [[200, 300, 0, 8, 32, 32]]),
        ((32, 32), {"crop": "random", "flip": True}, [[32, 32, 0, 0, 32, 32]]),
        # of 17 places; mirrored, left is what was cut off on the right
        ((300, 200), {"crop": "random", "flip": True}, [[200, 300, 0, x, 32, 32] for x in range(17)]),
        ((200, 300), {"crop": "random"}, [[300, 200, y, 0, 32, 32] for y in range(17)]),
        # 24 high and 40 wide is the nearest shape: 150 × 100 becomes 40 × 27, and 2 rows of 3 are cut off above
        ((150, 100), {"resolution": 32, "buckets": {"side": 32, "step": 8}}, [[100, 150, 2, 0, 24, 40]]),
    ],
    ids=["landscape", "portrait", "flip", "whole", "random-flip", "random", "bucket"],
)
def test_sizes_by_hand(
    tmp_path: Path, pipeline_xl_folder: Path, size: tuple[int, int], data: dict, expected: list[list[int]]
) -> None:
    """Heights before widths, tops before lefts: as the pipeline has them."""
    Image.new("RGB", size).save(tmp_path / "0.png")
    (tmp_path / "0.txt").write_text(CAPTION)
    model = load(pipeline_xl_folder)
    settings = {"images": str(tmp_path), "resolution": 32, "workers": 0} | data
    config = RunConfig(name="a", model="m", data=settings, batch=8)
    index = build_index([ImageFolder(tmp_path)], None).index
    stream = Stream(config, index, model, lambda u: 0)
    told = [stream.sample(position)["time_ids"].tolist() for position in range(200)]
    assert sorted(map(tuple, expected)) == sorted({tuple(each) for each in told})


def test_a_pictures_sizes_are_told_as_training_tells_them(pipeline_xl_folder: Path) -> None:
    """A square that nothing was cut off: what the pipeline tells by itself."""
    model = load(pipeline_xl_folder)
    told = model.read_crop(Crop((32, 32), (0, 0), (32, 32)))["time_ids"]
    pipeline = StableDiffusionXLPipeline.from_pretrained(pipeline_xl_folder)
    own = pipeline._get_add_time_ids((32, 32), (0, 0), (32, 32), torch.float32, 40)
    assert told.tolist() == own[0].tolist()


def test_sizes_are_exact_in_every_precision(pipeline_xl_folder: Path) -> None:
    """bf16 would make 1024 of 1023."""
    model = load(pipeline_xl_folder, precision="bf16")
    batch = default_collate([model.read_caption("") | model.read_crop(Crop((1023, 767), (0, 511), (1024, 1024)))])
    told = model.condition(batch)["added_cond_kwargs"]["time_ids"]
    assert told.tolist() == [[1023, 767, 0, 511, 1024, 1024]]
    assert not told.is_floating_point()


@pytest.mark.parametrize(
    ("precision", "force_upcast", "dtype"),
    [
        ("fp32", True, torch.float32),
        ("bf16", True, torch.bfloat16),
        ("fp16", True, torch.float32),
        ("fp16", False, torch.float16),
    ],
)
def test_pictures_decode_in_every_precision(
    tmp_path: Path, pipeline_xl_folder: Path, precision: str, force_upcast: bool, dtype: torch.dtype
) -> None:
    """fp16 only in a VAE that was mended for it, which says force_upcast: false."""
    folder = change_index(pipeline_xl_folder, tmp_path / "model")
    config = json.loads((folder / "vae/config.json").read_text())
    (folder / "vae/config.json").write_text(json.dumps(config | {"force_upcast": force_upcast}))
    latents = torch.randn(2, 4, 8, 8)
    vae = load(folder, precision=precision).vae
    assert isinstance(vae, FrozenVae)
    assert vae.module.dtype == dtype
    pictures, exact = vae.decode(latents), load(folder).vae.decode(latents)
    assert pictures.shape == (2, 32, 32, 3)
    assert np.abs(pictures.astype(int) - exact).max() <= {torch.float32: 1, torch.float16: 3, torch.bfloat16: 12}[dtype]
