"""The program of test_waits: how often the host asks the device for a number while the torch engines update.

Prints one line per engine, as JSON: its name, the numbers asked for in the update, and when `skipped` is read after it.
"""

import json
import os

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from configs.schema import RunConfig
from configs.solve.batch import BatchPlan, Shape
from tests.engines import FSDP2, ZERO, build_engine
from tests.weights import ModuleWeights
from train import process_group

ASKED = torch.ops.aten._local_scalar_dense.default  # .item(), .tolist(), float(tensor), if tensor


class Waits(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        self.count += function is ASKED
        return function(*arguments, **(keywords or {}))


def main() -> None:
    world = process_group.init_process_group(int(os.environ["WORLD_SIZE"]))
    for name, settings in (FSDP2 | {"zero0": ZERO["zero0"]}).items():
        plan = BatchPlan(Shape(1, world.size), 1, 2)
        settings = settings | {"precision": "fp32", "batch": plan.batch}
        config = RunConfig(name="waits", model="-", data={"images": "-"}, **settings)
        layer = torch.nn.Linear(8, 8)
        engine = build_engine(layer, ModuleWeights(layer), config, plan, world)
        for step in range(3):
            with Waits() as updates:
                for _ in range(2):
                    loss = engine(torch.full((1, 8), float("nan") if step == 1 else 1.0)).square().mean()
                    engine.backward(loss)
                    engine.step()
            with Waits() as reading:
                assert engine.skipped == (step == 1)
            if world.is_main_process:
                print(json.dumps([name, updates.count, reading.count]))


if __name__ == "__main__":
    main()
