"""Options together: a run that is killed within a save and resumed learns, to the bit, what it would have learnt."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from store.run.run_dir import RunDir
from tests.engines import SETTINGS
from tests.odd_images import make_bucket_data
from tests.runs import new_run, read_losses, values
from tests.train.attempts import KILL_IN_SECOND_SAVE, make_attempt

STEPS = 6
LORA = {"rank": 4, "alpha": 2, "targets": "all-linear"}
EIGHT_BITS = {"name": "adamw_8bit", "decay": "matrices"}
# The pipeline, the engine, more keys of the data, and the other keys. All have buckets, dropped captions, and crops to
# choose from.
COMBINATIONS: dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {
    "XL, adapters, 8 bits, offload": (
        "pipeline_xl_folder",
        "zero2",
        {"caption_tokens": 150, "size_dropout": 0.3, "cache": "all"},
        {
            "lora": LORA,
            "optimizer": EIGHT_BITS,
            "offload": True,
            "gradient_checkpointing": True,
            "loss_weighting": "min_snr",
            "noise_offset": 0.1,
            "timesteps": {"stratified": True},
        },
    ),
    "XL, DoRA, 8 bits, FSDP2": (
        "pipeline_xl_folder",
        "reshard",
        {"caption_tokens": 225, "size_dropout": 0.3, "cache": "latents"},
        {"lora": LORA | {"dora": True}, "optimizer": EIGHT_BITS, "offload": True, "precision": "bf16"},
    ),
    "XL, all weights, ZeRO 3": (
        "pipeline_xl_folder",
        "zero3",
        {"caption_tokens": 150, "cache": "off"},
        {"loss": "huber", "input_perturbation": 0.1, "timesteps": {"distribution": "logit_normal"}},
    ),
    "2, v, all weights, 8 bits": (
        "pipeline_2_folder",
        "zero1",
        {"cache": "latents"},
        {"zero_terminal_snr": True, "loss_weighting": "soft_min_snr", "optimizer": EIGHT_BITS, "precision": "bf16"},
    ),
    "1, adapters, Adafactor": (
        "pipeline_folder",
        "zero0",
        {"caption_tokens": 150, "cache": "all"},
        {"lora": LORA, "optimizer": {"name": "adafactor"}, "prediction": "sample", "timesteps": {"first": 100}},
    ),
    "1, adapters, FSDP2 that keeps": (
        "pipeline_folder",
        "keep",
        {"cache": "off"},
        {"lora": LORA, "gradient_checkpointing": True, "precision": "bf16", "compile": False},
    ),
}


@pytest.mark.faults
@pytest.mark.parametrize("name", COMBINATIONS)
def test_it_goes_on_to_the_bit(tmp_path: Path, request: pytest.FixtureRequest, name: str) -> None:
    pipeline, engine, more_data, changes = COMBINATIONS[name]
    data = make_bucket_data(tmp_path / "images") | {"resolution": 32, "caption_dropout": 0.2} | more_data
    settings = SETTINGS[engine] | {"precision": "fp32"} | changes

    def start(folder: str) -> RunDir:
        keep = {"every_steps": 2, "keep": 3}
        model = request.getfixturevalue(pipeline)
        return new_run(tmp_path / folder, model, data=data, steps=STEPS, micro_batch=3, checkpoint=keep, **settings)

    whole, resumed = start("whole"), start("resumed")
    make_attempt(whole, 2)
    assert make_attempt(resumed, 2, KILL_IN_SECOND_SAVE) != [0, 0]
    make_attempt(resumed, 2)
    assert len(read_losses(whole)) == STEPS
    assert np.isfinite(read_losses(whole)).all()
    assert read_losses(resumed) == read_losses(whole)
    kept, expected = values(resumed), values(whole)
    assert kept.keys() == expected.keys()
    assert [key for key in expected if not np.array_equal(kept[key], expected[key])] == []
    assert any(whole.pipeline_path.iterdir())
    shutil.rmtree(whole.path)  # some hundred megabytes, six times
