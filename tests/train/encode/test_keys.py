"""The keys by which encodings are found: what they are must stay, or everybody's cache would be lost."""

from pathlib import Path

import pytest
import torch

from configs.schema import RunConfig
from train.data.encodings import make_states_key
from train.models import load_model


def test_the_key_of_a_caption_is_what_it_was() -> None:
    key = make_states_key({"tokens": torch.arange(154).reshape(2, 77)})
    assert key.hex() == "18d76ea3f1b6acc69f4102a7a28418c7", "made before Stable Diffusion XL was trained"


@pytest.mark.parametrize("folder", ["pipeline_folder", "pipeline_2_folder"])
def test_a_caption_of_stable_diffusion_1_and_2_is_its_tokens_alone(folder: str, request) -> None:
    """And their family has no more facts than it had."""
    path: Path = request.getfixturevalue(folder)
    config = RunConfig(name="a", model=str(path), data={"images": "-"}, precision="fp32")
    model = load_model(config, path, torch.device("cpu"))
    assert {name: tuple(read.shape) for name, read in model.read_caption("a").items()} == {"tokens": (1, 77)}
    assert model.describe_encoder("states").keys() == {"weights", "dtype", "rounding", "tokenizer", "chunks"}
    assert model.describe_encoder("moments").keys() == {"weights", "dtype", "rounding"}
