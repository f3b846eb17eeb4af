"""The program of test_moved: an engine per ZeRO stage, and the self-test after each name of DeepSpeed's was taken away.

Prints one line per name: the stage, the name and what the self-test said.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from operator import attrgetter

import torch

from configs.errors import LockstepError
from configs.schema import RunConfig
from configs.solve.batch import Shape, solve_batch
from configs.solve.deepspeed import render_deepspeed
from tests.weights import ModuleWeights
from train import process_group
from train.engines import deepspeed_state
from train.engines.deepspeed import ZeroEngine


@contextmanager
def without(engine: object, dotted: str) -> Iterator[None]:
    """As in a version that has no such attribute."""
    path, _, name = dotted.rpartition(".")
    owner = attrgetter(path)(engine) if path else engine
    places = [place for place in (owner, *type(owner).__mro__) if name in vars(place)]
    kept = [vars(place)[name] for place in places]
    for place in places:
        delattr(place, name)
    try:
        yield
    finally:
        for place, value in zip(places, kept, strict=True):
            setattr(place, name, value)


def message_of(engine: object) -> str:
    try:
        deepspeed_state.check_state_layout(engine)
    except LockstepError as error:
        return str(error)
    return "all is there"


def main() -> None:
    world = process_group.init_process_group(int(os.environ["WORLD_SIZE"]))
    for zero in (1, 2, 3):
        config = RunConfig(name="moved", model="-", data={"images": "-"}, batch=2, zero=zero, precision="fp32")
        layer, rendered = torch.nn.Linear(4, 4), render_deepspeed(config, solve_batch(config, Shape(1, 1)))
        engine = ZeroEngine(layer, ModuleWeights(layer), config, rendered, world.device)
        inner = engine._deepspeed
        print(zero, "nothing", message_of(inner), sep="|")
        for name in (*deepspeed_state._COUNTERS, *deepspeed_state._TOUCHED[zero]):
            with without(inner, name):
                print(zero, name, message_of(inner), sep="|")
        find_owned = deepspeed_state.find_owned
        deepspeed_state.find_owned = lambda engine, find=find_owned: dict(list(find(engine).items())[1:])
        print(zero, "a weight", message_of(inner), sep="|")
        deepspeed_state.find_owned = find_owned


if __name__ == "__main__":
    main()
