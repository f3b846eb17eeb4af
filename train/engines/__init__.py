"""What shards the training state, steps it, and names its fragments: `base.Engine`, one file for each that there is."""

from importlib import import_module
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from train.engines.base import EngineModule

# Imported when one is chosen (configs/solve/engine.py): each may bring a library that takes seconds to import.
ENGINES = {"deepspeed": "train.engines.deepspeed", "fsdp2": "train.engines.fsdp2", "ddp": "train.engines.ddp"}


def import_engine(name: str) -> "EngineModule":
    """The module behind `name`, a key of ENGINES."""
    return cast("EngineModule", import_module(ENGINES[name]))
