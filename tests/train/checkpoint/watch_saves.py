"""The program of test_save_memory: one rank makes steps and saves, and prints what its memory did in each save.

Argument: the run's folder. The lines are JSON: bytes of a checkpoint, the process's own memory before the save and at
its peak, and the largest tensor that torch was asked for while the save was begun.
"""

import json
import sys
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from configs.schema import CheckpointConfig, RunConfig
from configs.solve.batch import Shape, solve_batch
from configs.solve.deepspeed import render_deepspeed
from store.run.attempt_plan import AttemptPlan
from store.run.run_dir import RunDir
from tests.train.engines.load_unet import Peak, own_memory
from tests.weights import ModuleWeights
from train import process_group
from train.checkpoint.saver import Saver
from train.context import RankContext
from train.engines.deepspeed import ZeroEngine
from train.engines.ema import Ema
from train.progress import Progress
from train.stop_signal import StopSignal

WIDTH, SAVES = 2048, 4


class Requests(TorchDispatchMode):
    """The largest result that an operation of torch's had, in bytes, but for views."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and not function.is_view:
            self.largest = max(self.largest, result.nbytes)
        return result


def main(folder: str) -> None:
    world = process_group.init_process_group(1)
    policy = CheckpointConfig(every_steps=1, keep=1)
    config = RunConfig(
        name="a", model="-", data={"images": "-"}, batch=4, zero=2, precision="fp32", ema=True, checkpoint=policy
    )
    batch_plan = solve_batch(config, Shape(1, 1))
    run = RunDir(Path(folder))
    attempt = run.open_attempt()
    plan = AttemptPlan(1, 1, batch_plan.micro_batch, batch_plan.accumulation, 10**6, "-", "0" * 16, 1, "")
    plan.write(attempt.plan_path)
    net = torch.nn.Sequential(torch.nn.Linear(WIDTH, WIDTH), torch.nn.Linear(WIDTH, WIDTH))
    engine = ZeroEngine(net, ModuleWeights(net), config, render_deepspeed(config, batch_plan), world.device)
    ema = Ema(config.ema, engine)
    context = RankContext(run, attempt, plan, config, world, Progress(), StopSignal())
    saver = Saver(context, engine, ema, None)
    for step in range(1, SAVES + 1):
        engine.backward(engine(torch.randn(4, WIDTH)).square().mean())
        engine.step()
        ema.update(step)
        before = own_memory()
        with Peak() as peak:
            with Requests() as requests:
                saver.after_step(step, force=False, requested=False, skipped=False)
            assert saver.in_flight is not None
            saver.finish()
        record = {"size": saver.size, "before": before, "peak": peak.bytes, "largest": requests.largest}
        print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
