"""Which engine a config means, and where DeepSpeed's config is needed."""

import pytest

from configs.schema import RunConfig
from configs.solve.engine import choose_engine


@pytest.mark.parametrize(
    ("settings", "engine"),
    [
        ({"zero": 0}, "ddp"),
        ({"zero": 1}, "deepspeed"),
        ({"zero": 3, "precision": "fp16"}, "deepspeed"),
        ({"engine": "fsdp2"}, "fsdp2"),
        ({"engine": "fsdp2", "zero": "auto"}, "fsdp2"),
        ({"engine": "fsdp2", "reshard": False, "precision": "bf16", "offload": True}, "fsdp2"),
    ],
)
def test_engine_and_stage_choose_together(settings: dict, engine: str) -> None:
    assert choose_engine(RunConfig(name="a", model="m", data={"images": "i"}, **settings)) == engine
