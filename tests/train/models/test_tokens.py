"""Captions of any length as chunks that a text encoder reads: the same number for every caption."""

from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from transformers import CLIPTokenizer

from configs.schema import RunConfig
from train.models import load_model
from train.models.base import DiffusionModel
from train.models.tokens import count_tokens, tokenize_caption

LONG = " ".join(f"word {number}" for number in range(200))
WORDS = ["a", "red", "circle", "on", "white"]  # one token each


@pytest.fixture(scope="module", params=["pipeline_folder", "pipeline_2_folder"])
def folder(request: pytest.FixtureRequest) -> Path:
    """Captions are padded with their last token as by Stable Diffusion 1, and with another one as by 2."""
    return Path(request.getfixturevalue(request.param))


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer")


def load(folder: Path, caption_tokens: int) -> DiffusionModel:
    data = {"images": "-", "caption_tokens": caption_tokens}
    return load_model(RunConfig(name="a", model=str(folder), data=data, precision="fp32"), folder, torch.device("cpu"))


@pytest.mark.parametrize("caption", ["", "a red circle", "a red circle! " * 3, "ÄÖ 猫 🐈", LONG])
def test_one_chunk_is_what_the_tokenizer_makes_itself(tokenizer: CLIPTokenizer, caption: str) -> None:
    expected = tokenizer(caption, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
    assert torch.equal(tokenize_caption({"tokens": tokenizer}, 1, caption)["tokens"], expected)


@pytest.mark.parametrize("chunks", [2, 3])
@pytest.mark.parametrize("length", [0, 1, 74, 75, 76, 149, 150, 151, 300])
def test_every_caption_has_all_its_chunks(tokenizer: CLIPTokenizer, chunks: int, length: int) -> None:
    caption = " ".join((WORDS * 60)[:length])
    words = tokenizer(caption, add_special_tokens=False, verbose=False).input_ids
    assert count_tokens(tokenizer, [caption, ""]) == [length, 0]
    tokens = tokenize_caption({"tokens": tokenizer}, chunks, caption)["tokens"]
    assert tokens.shape == (chunks, 77)
    for chunk, row in enumerate(tokens.tolist()):
        part = words[75 * chunk : 75 * (chunk + 1)]
        padding = [tokenizer.pad_token_id] * (75 - len(part))
        assert row == [tokenizer.bos_token_id, *part, tokenizer.eos_token_id, *padding]


def test_the_unet_is_told_the_states_of_all_chunks(folder: Path) -> None:
    """Each chunk as the pipeline itself reads a text of its length, one with nothing in it as the empty text."""
    model, pipeline = load(folder, 225), StableDiffusionPipeline.from_pretrained(folder)
    words = WORDS * 60
    texts = [" ".join(words[:75]), " ".join(words[75:100]), ""]
    expected = [pipeline.encode_prompt(text, torch.device("cpu"), 1, False)[0] for text in texts]
    tokens = [model.read_caption(caption)["tokens"] for caption in (" ".join(words[:100]), "")]
    states = model.condition({"tokens": torch.stack(tokens)})["encoder_hidden_states"]
    torch.testing.assert_close(states[:1], torch.cat(expected, 1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(states[1:], torch.cat(expected[2:] * 3, 1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("caption_tokens", [75, 150])
def test_sample_pictures_read_a_prompt_as_training_reads_a_caption(folder: Path, caption_tokens: int) -> None:
    model, pipeline = load(folder, caption_tokens), StableDiffusionPipeline.from_pretrained(folder)
    told = model.embed_prompt(LONG)
    for key, text in (("prompt_embeds", LONG), ("negative_prompt_embeds", "")):
        training = model.condition({"tokens": model.read_caption(text)["tokens"][None]})["encoder_hidden_states"]
        assert torch.equal(told[key], training)
    if caption_tokens == 75:
        own, empty = pipeline.encode_prompt(LONG, torch.device("cpu"), 1, True)
        assert torch.equal(told["prompt_embeds"], own)
        assert torch.equal(told["negative_prompt_embeds"], empty)
