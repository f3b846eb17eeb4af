"""A run whose images do not all decode, with long captions of which some are drawn, on any shape: the same curve."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from configs.schema import RunConfig
from store.dataset.index import Index, write_index
from store.run.run_dir import RunDir
from tests.runs import new_run
from tests.tiny import make_images
from tests.train.attempts import KILL_IN_SECOND_SAVE, make_attempt
from train.models import load_model

STEPS = 6
LONG = "a white circle, " + ", ".join(f"a red circle {number}" for number in range(30))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four of 40 images have a header and no pixels: few enough, so that some are first met in each part of the run."""
    folder = make_images(tmp_path_factory.mktemp("bad") / "images", count=40)
    for number in (3, 4, 11, 30):
        path = folder / f"{number:03d}.png"
        path.write_bytes(path.read_bytes()[:60])
    return folder


def start_run(folder: Path, pipeline: Path, images: Path, **changes: object) -> RunDir:
    data = {"caption_tokens": 150, "tag_shuffle": True, "tag_dropout": 0.2, "keep_tags": 1, "on_bad_sample": "skip"}
    data |= {"images": str(images), "resolution": 32, "crop": "random", "workers": 0}
    run = new_run(folder, pipeline, images, data=data, steps=STEPS, checkpoint={"every_steps": 2}, **changes)
    samples = [
        dataclasses.replace(sample, captions=(*sample.captions, LONG)) for sample in Index.open_file(run.dataset_path)
    ]
    write_index(run.dataset_path, samples, [images])
    return run


def read_metrics(run: RunDir) -> list[dict[str, float]]:
    return [json.loads(line) for line in run.metrics_path.read_text().splitlines()]


def test_every_shape_and_every_attempt_agree(tmp_path: Path, pipeline_folder: Path, images: Path) -> None:
    pictures = {"every_steps": STEPS, "prompts": [LONG], "timesteps": 2}
    whole = start_run(tmp_path / "whole", pipeline_folder, images, micro_batch=6, pictures=pictures)
    make_attempt(whole, 1)
    parts = start_run(tmp_path / "parts", pipeline_folder, images, micro_batch=3)
    assert make_attempt(parts, 2, KILL_IN_SECOND_SAVE) != [0, 0]
    make_attempt(parts, 1)
    expected, found = read_metrics(whole), read_metrics(parts)
    assert [line["step"] for line in found] == list(range(1, STEPS + 1))
    for one, other in zip(expected, found, strict=True):
        assert abs(one["loss/train"] - other["loss/train"]) <= 5e-6 * one["loss/train"]
        assert one["totals/bad_samples"] == other["totals/bad_samples"]
    counts = [line["totals/bad_samples"] for line in found]
    assert 0 < counts[0] < counts[-1] == 4, "some were found before the resume, and some after it"
    check_card(whole, pipeline_folder)


def check_card(run: RunDir, model: Path) -> None:
    """Its second program reads a prompt as training reads a caption."""
    card = (run.pipeline_path / "README.md").read_text()
    assert (
        "| captions | up to 150 tokens, in 2 chunks; tags shuffled and 20% of them dropped, but for the first 1; "
        "none for 10% of the samples |" in card
    )
    first, second = re.findall("```python\n(.*?)```", card, re.DOTALL)
    program = (first + second).replace("path/to/this/folder", str(run.pipeline_path))
    namespace: dict[str, Any] = {}
    exec(re.sub(r"^image = .*$", "", program, flags=re.MULTILINE), namespace)
    config = RunConfig(name="a", model=str(model), data={"images": "-", "caption_tokens": 150}, precision="fp32")
    told = load_model(config, model, torch.device("cpu")).embed_prompt(LONG)
    assert torch.equal(namespace["embed"](LONG), told["prompt_embeds"])
    image = namespace["pipeline"](
        prompt_embeds=namespace["embed"](LONG),
        negative_prompt_embeds=namespace["embed"](""),
        height=32,
        width=32,
        num_inference_steps=2,
    ).images[0]
    assert image.size == (32, 32)
