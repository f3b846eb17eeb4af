"""Every engine and stage by a name of its own, for tests that go through them."""

from configs.schema import RunConfig
from configs.solve.batch import BatchPlan
from configs.solve.deepspeed import render_deepspeed
from configs.solve.engine import choose_engine
from train.engines import import_engine

ZERO = {f"zero{stage}": {"engine": "deepspeed", "zero": stage} for stage in range(4)}
# its weights are freed after each block's pass, or kept through the step
FSDP2 = {"reshard": {"engine": "fsdp2", "reshard": True}, "keep": {"engine": "fsdp2", "reshard": False}}
SETTINGS = ZERO | FSDP2
SIXTEEN_BITS = [name for name in SETTINGS if name != "zero0"]


def build_engine(module, weights, config: RunConfig, plan: BatchPlan, world):
    """The engine that `config` chooses, without an attempt on disk."""
    name = choose_engine(config)
    if name == "deepspeed":
        return import_engine(name)(module, weights, config, render_deepspeed(config, plan), world.device)
    return import_engine(name)(module, weights, config, plan.accumulation, world)
