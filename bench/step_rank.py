"""One rank of bench/step.py: three contestants on the same weights and samples, who take turns step by step.

Argument: the command's options as JSON, with `records`, the folder for what was measured.
"""

import contextlib
import itertools
import json
import os
import statistics
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import deepspeed
import torch
from torch.nn.parallel import DistributedDataParallel

from bench.stage import Stage, make_model, make_stage
from configs.solve.deepspeed import render_deepspeed
from configs.solve.learning_rate import compute_learning_rate
from store.dataset.listing import open_image
from store.run.attempt_plan import AttemptPlan
from store.run.run_dir import RunDir
from tests.tiny import make_images
from tests.weights import ModuleWeights
from train import loop, process_group
from train.checkpoint.saver import Saver
from train.context import RankContext
from train.data.images import load_square
from train.data.stream import micro_batches
from train.engines.deepspeed import ZeroEngine
from train.engines.ema import Ema
from train.models.stable_diffusion import StableDiffusion
from train.progress import Progress
from train.reporting.metrics import Metrics
from train.reporting.metrics_writer import MetricsWriter
from train.resilience.monitor import RankMonitor
from train.resilience.skipped import SkippedSteps
from train.step import StepResult, Trainer
from train.step_totals import StepTotals

Step = Callable[[int], torch.Tensor]  # makes step k, returns the mean loss over this rank's micro-batches


def bare_deepspeed(stage: Stage) -> Step:
    """The least that trains with DeepSpeed."""
    unet, batches = stage.unet(), stage.in_memory()
    rendered, optimizer = render_deepspeed(stage.config, stage.plan), stage.adamw(unet)
    engine, *_ = deepspeed.initialize(model=unet, optimizer=optimizer, config=rendered, dist_init_required=False)

    def step(k: int) -> torch.Tensor:
        losses = []
        for noise, timestep in batches[k - 1]:
            losses.append(stage.loss(engine, noise, timestep))
            engine.backward(losses[-1])
            engine.step()
        return torch.stack(losses).detach().mean()

    return step


def bare_torch(stage: Stage) -> Step:
    """The same in PyTorch alone; bf16 as its users write it, fp32 weights under autocast."""
    device, config = stage.world.device, stage.config
    unet = stage.unet().to(device)
    net = DistributedDataParallel(unet, gradient_as_bucket_view=True) if stage.world.size > 1 else unet
    optimizer = stage.adamw(unet)
    batches = stage.in_memory()

    def step(k: int) -> torch.Tensor:
        losses = []
        for number, (noise, timestep) in enumerate(batches[k - 1], 1):
            last = number == stage.plan.accumulation
            with contextlib.nullcontext() if last or net is unet else net.no_sync():
                with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16"):
                    losses.append(stage.loss(net, noise, timestep))
                (losses[-1] / stage.plan.accumulation).backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), config.grad_clip)
        optimizer.step()
        optimizer.zero_grad()
        return torch.stack(losses).detach().mean()

    return step


class Race:
    """Our loop runs, and the opponents make their step whenever ours is about to make its own."""

    def __init__(self, stage: Stage, opponents: dict[str, Step]):
        self.stage, self.opponents = stage, opponents
        self.laps: dict[str, list[list[float]]] = {name: [] for name in ("ours", *opponents)}  # seconds, CPU seconds
        self.losses: dict[str, list[float]] = {name: [] for name in ("ours", *opponents)}
        self.results: list[StepResult] = []  # ours
        self.began = (0.0, 0.0)

    def before(self, k: int) -> None:
        """Our step k − 1, with all that loop.train does after it, is over; step k has not begun."""
        if k > 1:
            self.lap("ours", self.began)
        order = list(self.opponents)
        for name in order if k // 2 % 2 else reversed(order):  # EMA alternates with k, so this must not
            began = self.stage.clock()
            mean_loss = self.opponents[name](k)
            self.lap(name, began)
            self.losses[name].append(mean_loss.item())
        self.began = self.stage.clock()

    def lap(self, name: str, began: tuple[float, float]) -> None:
        self.laps[name].append([now - then for now, then in zip(self.stage.clock(), began, strict=True)])


class Racer(Trainer):
    """Our trainer, whose every second step keeps the average."""

    race: Race
    average: Ema

    def step(self, number: int, *rest: Any) -> StepResult:
        self.race.before(number)
        self.ema = self.average if number % 2 else None
        result = super().step(number, *rest)
        self.race.results.append(result)
        return result


def run(stage: Stage, folder: Path) -> dict[str, Any]:
    """Race the three; then time each part of our step alone."""
    world, config = stage.world, stage.config
    steps = range(1, config.steps + 1)
    batches = micro_batches(stage.stream, stage.plan, world.rank, steps, pin_memory=world.device.type == "cuda")
    batches = itertools.chain([next(batches)], batches)  # forks the workers while there is little memory to share
    race = Race(stage, {"deepspeed": bare_deepspeed(stage), "torch": bare_torch(stage)})
    unet = stage.unet()
    engine = ZeroEngine(unet, ModuleWeights(unet), config, render_deepspeed(config, stage.plan), world.device)
    racer = Racer(stage.model, stage.objective, engine, None, world.device)
    racer.race, racer.average = race, Ema(config.ema, engine)
    context = make_context(stage, folder)
    writer = MetricsWriter(context.run, context.attempt, 1) if world.is_main_process else None
    saver, skipped = Saver(context, engine, racer.average, None), SkippedSteps(world, engine, stage.stream, 0)
    monitor = RankMonitor(context)
    reporters = [skipped, Metrics(context, engine, saver, skipped, writer)]
    loop.run_steps(context, steps, racer, batches, saver, reporters)
    race.before(steps.stop)
    race.losses["ours"] = [result.loss.item() for result in race.results]
    monitor.stop()
    waits = [result.data_wait for result in race.results[stage.args.warm :]]
    parts = {"samples": statistics.median(waits)} | parts_alone(
        stage, racer, saver, Metrics(context, engine, saver, skipped, writer)
    )
    if writer is not None:
        writer.close()
    return {"laps": race.laps, "losses": race.losses, "parts": parts}


def make_context(stage: Stage, folder: Path) -> RankContext:
    """Of a run of each rank's own, which no other one misses. Its last step is never made, as that would save."""
    shape, split = stage.plan.shape, (stage.plan.micro_batch, stage.plan.accumulation)
    length = (stage.config.steps + 1, "random", "0" * 16, len(stage.stream.samples), "")
    plan = AttemptPlan(shape.nodes, shape.gpus_per_node, *split, *length)
    stop = SimpleNamespace(received=False, reason=None, since=None)  # train's own would keep Ctrl-C from us
    run = RunDir(folder)
    return RankContext(run, run.open_attempt(), plan, stage.config, stage.world, Progress(), stop)


def parts_alone(stage: Stage, racer: Racer, saver: Saver, metrics: Metrics) -> dict[str, float]:
    """Seconds of each thing our step does and the bare one does not."""
    world, config, engine, last = stage.world, stage.config, racer.engine, stage.config.steps
    totals, result = StepTotals(world.device), StepResult(torch.zeros(1, device=world.device), [[]], 0.0)

    def report() -> None:
        totals.add(result, config.lr)
        with totals.paused():
            metrics.report(last, totals)

    alone: dict[str, Callable[[], Any]] = {
        "EMA": lambda: racer.average.update(last),
        "boundary": lambda: saver.after_step(last, force=False, requested=False, skipped=False),
        "report": report,
        "lr": lambda: engine.set_learning_rate(compute_learning_rate(config, last, last)),
    }
    return {name: stage.seconds(part) for name, part in alone.items()}


def encoding(stage: Stage, model: StableDiffusion) -> dict[str, float]:
    """Seconds per sample of what comes before the UNet."""
    data, samples, m = stage.config.data, stage.stream.samples, stage.plan.micro_batch

    def decode() -> None:
        with open_image(Path(data.images), samples[0]) as file:
            load_square(file, data, (0.5, 0.5), False)

    batch = {key: value.to(stage.world.device) for key, value in stage.stream[range(m)].items()}
    return {
        "decode": stage.seconds(decode),
        "sample": stage.seconds(lambda: stage.stream.sample(0)),
        "VAE": stage.seconds(lambda: model.latents(batch), 3) / m,
        "text": stage.seconds(lambda: model.condition(batch), 3) / m,
    }


def main(options: str) -> None:
    args = SimpleNamespace(**json.loads(options))
    world = process_group.init_process_group(args.world_size)
    with tempfile.TemporaryDirectory() as temporary:
        model = make_model(args, world.device)
        stage = make_stage(args, world, model, make_images(Path(temporary, "images"), 64, 10 * args.side))
        measured = {"parameters": sum(p.numel() for p in model.denoiser.parameters()), **run(stage, Path(temporary))}
        measured["encoding"] = encoding(stage, model)
    if world.is_main_process:
        Path(args.records, "measured.json").write_text(json.dumps(measured))
    world.barrier()


if __name__ == "__main__":
    try:
        main(sys.argv[1])
    except Exception:  # noqa: BLE001
        traceback.print_exc()
        os._exit(1)  # Python would wait for workers and ranks that wait for this one
