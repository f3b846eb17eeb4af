"""Every engine and stage by a name of its own, for tests that go through them."""

from configs.schema import RunConfig
from configs.solve.batch import BatchPlan
from configs.solve.deepspeed import render_deepspeed
from configs.solve.engine import choose_engine
from train.engines.ddp import ReplicaEngine
from train.engines.deepspeed import ZeroEngine
from train.engines.fsdp2 import ShardedEngine

ZERO = {f"zero{stage}": {"engine": "deepspeed", "zero": stage} for stage in range(4)}
# its weights are freed after each block's pass, or kept through the step
FSDP2 = {"reshard": {"engine": "fsdp2", "reshard": True}, "keep": {"engine": "fsdp2", "reshard": False}}
SETTINGS = ZERO | FSDP2
SIXTEEN_BITS = [name for name in SETTINGS if name != "zero0"]


def build_engine(module, weights, config: RunConfig, plan: BatchPlan, world):
    """The engine that `config` chooses, without an attempt on disk."""
    name = choose_engine(config)
    if name == "deepspeed":
        return ZeroEngine(module, weights, config, render_deepspeed(config, plan), world.device)
    engine_class = {"ddp": ReplicaEngine, "fsdp2": ShardedEngine}[name]
    return engine_class(module, weights, config, plan.accumulation, world)
