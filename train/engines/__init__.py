"""What shards the training state, steps it, and names its fragments: `base.Engine`, one file for each that there is."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from train.engines.base import Engine

# Module and class, imported when one is chosen (configs/solve/engine.py): each may bring a library that takes seconds.
ENGINES = {
    "deepspeed": ("train.engines.deepspeed", "ZeroEngine"),
    "fsdp2": ("train.engines.fsdp2", "ShardedEngine"),
    "ddp": ("train.engines.ddp", "ReplicaEngine"),
}


def import_engine(name: str) -> "type[Engine]":
    """The class behind `name`, a key of ENGINES."""
    module, class_name = ENGINES[name]
    engine: type[Engine] = getattr(import_module(module), class_name)
    return engine
