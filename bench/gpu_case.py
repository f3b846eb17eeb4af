"""One case of bench/gpu.py: a UNet with random weights under one engine, steps from memory. Argument: options as JSON.

Modes: peak (the largest rate of matrix products), case. What is found goes to found.json in the folder `records`.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from bench.counters import count_all, count_launches
from bench.machine import summarize
from bench.stage import Stage, make_model, make_stage
from bench.unets import draw_condition, make_unet
from configs.known_models import PipelineSize
from configs.solve.device_memory import estimate_device_memory
from configs.solve.hardware import Hardware
from tests.tiny import make_images
from train import attempt, process_group
from train.checkpoint.saver import Saver
from train.engines.ema import Ema
from train.models.compile import compile_blocks
from train.step import Trainer

WARM, STEPS = 3, 10
META = torch.device("meta")


def measure_peak(args: SimpleNamespace) -> dict[str, float]:
    """TFLOP/s of bf16 products of random square matrices."""
    side, times = (256, 3) if args.tiny else (8192, 20)
    a, b = (torch.randn(side, side, device=args.device, dtype=torch.bfloat16) for _ in range(2))
    for _ in range(3):
        a @ b
    finish(args.device)
    began = time.perf_counter()
    for _ in range(times):
        a @ b
    finish(args.device)
    return {"side": side, "tflops": round(2 * side**3 * times / (time.perf_counter() - began) / 1e12, 2)}


def finish(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def count_flops(args: SimpleNamespace) -> int:
    """Of one sample's forward and backward pass, from the shapes alone."""
    unet = make_unet(args.unet, args.side)
    x, t = torch.randn(1, 4, args.side, args.side, device=META), torch.zeros(1, dtype=torch.long, device=META)
    with FlopCounterMode(display=False) as counter:
        unet(x, t, **draw_condition(args.unet, 1, META, torch.float32)).sample.sum().backward()
    return counter.get_total_flops()


class Steps:
    """A trainer whose micro-batches lie on the device."""

    def __init__(self, stage: Stage):
        self.stage = stage
        self.engine = stage.make_engine()
        self.ema = Ema(stage.config.ema, self.engine)
        self.trainer = Trainer(stage.model, stage.objective, self.engine, self.ema, stage.world.device)
        m, side, device = stage.plan.micro_batch, stage.args.side, stage.world.device
        self.micro_batch = {
            "noise": torch.randn(m, 4, side, side, device=device),
            "timestep": torch.randint(0, 1000, (m,), device=device),
            "position": torch.arange(m),
        }
        self.number = 0

    def endless(self) -> Iterator[dict[str, torch.Tensor]]:
        while True:
            yield self.micro_batch

    def make(self, before_update: Callable[[], None] = lambda: None) -> None:
        """One step, as the loop makes it where no report is due."""
        self.number += 1
        self.trainer.step(self.number, 1e-5, self.endless(), before_update)
        bool(self.engine.skipped)

    def time(self) -> float:
        """Seconds of one step, until the device is done."""
        self.stage.finish()
        began = time.perf_counter()
        self.make()
        self.stage.finish()
        return time.perf_counter() - began


def measure_stall(steps: Steps, saver: Saver) -> float:
    """Seconds in the calls of one save, from the boundary that begins it to its commit, through the loop's calls."""
    spent = 0.0

    def timed(call: Any) -> None:
        nonlocal spent
        began = time.perf_counter()
        call()
        spent += time.perf_counter() - began

    def boundary(requested: bool) -> None:
        timed(lambda: saver.after_step(steps.number, force=False, requested=requested, skipped=False))

    boundary(requested=True)
    while saver.in_flight is not None:
        steps.make(before_update=lambda: timed(saver.wait_for_copy))
        boundary(requested=False)
    return round(spent, 4)


def measure_memory(stage: Stage) -> dict[str, int | None]:
    """Bytes on the device: the peak of torch's allocator so far; `used`, which is what it keeps and CUDA's context; and
    what a plan tells for a UNet that is alone on the device, to be compared with `used`."""
    unet, counted = stage.model.denoiser, sum(stage.model.weights.sizes.values())
    size = PipelineSize(
        parameters={"unet": counted, "vae": 0, "text_encoder": 0},
        configs={"unet": dict(unet.config), "vae": dict(stage.model.vae.config)},
    )
    cuda = stage.world.device.type == "cuda"
    planned = {"planned": estimate_device_memory(stage.config, stage.plan, size, Hardware(gpus=cuda)).total}
    if not cuda:
        return planned
    free, total = torch.cuda.mem_get_info()
    peak = {"allocated": torch.cuda.max_memory_allocated(), "reserved": torch.cuda.max_memory_reserved()}
    return peak | {"used": total - free} | planned


def run_case(args: SimpleNamespace, folder: Path) -> Iterator[dict[str, Any]]:
    """What is found, one thing after the other: a save may take longer than a case has."""
    world = process_group.init_process_group(1)
    args.warm, args.rounds, args.workers = WARM, STEPS, 0
    args.settings = {"gradient_checkpointing": args.gradient_checkpointing, "compile": args.compile}
    model = make_model(args, META)
    if args.gradient_checkpointing:
        model.denoiser.enable_gradient_checkpointing()
    stage = make_stage(args, world, model, make_images(folder / "images", 2, 16))
    attempt._prepare_torch(stage.config, world)
    compile_blocks(model.denoiser, stage.config, world.device)
    flops = count_flops(args)
    steps = Steps(stage)
    for _ in range(WARM):
        steps.make()
    seconds = [steps.time() for _ in range(STEPS)]
    images = stage.plan.batch
    found: dict[str, Any] = {
        "parameters": sum(model.weights.sizes.values()),
        "step_s": summarize(seconds, 5),
        "images_per_s": summarize([images / each for each in seconds], 3),
        "tflop_per_image": round(flops / 1e12, 3),
        "memory": measure_memory(stage),
    }
    if args.peak:
        rate = flops * found["images_per_s"]["median"]
        found["mfu_pct"] = round(100 * rate / (args.peak * 1e12), 2)
    yield found
    # what was compiled is one operator to torch, which counts it again as plain ones where it is watched
    count = count_launches if args.compile else partial(count_all, device=world.device)
    yield {"counts": count(steps.make)}
    if args.save:
        saver = Saver(stage.open_context(folder / "run"), steps.engine, steps.ema, None)
        yield {"save_stall_s": [measure_stall(steps, saver) for _ in range(2)]}


def main(options: str) -> None:
    args = SimpleNamespace(**json.loads(options))
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for part in [measure_peak(args)] if args.mode == "peak" else run_case(args, Path(folder)):
            found |= part
            Path(args.records, "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
    sys.stdout.flush()
    os._exit(0)  # threads of a process group may wait for ever
