"""One rank of bench/step.py: contestants on the same weights and samples, who take turns step by step.

Argument: the command's options as JSON, with `records`, the folder for what was measured.
"""

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

import torch

from bench.contestants import Step, find_opponents
from bench.counters import count_all
from bench.stage import Stage, make_model, make_stage
from configs.solve.buckets import list_crop_sizes
from configs.solve.learning_rate import compute_learning_rate
from tests.tiny import make_images
from train import attempt, loop, process_group
from train.checkpoint.saver import Saver
from train.data.images import load_crop
from train.data.stream import micro_batches
from train.engines.ema import Ema
from train.models.stable_diffusion import StableDiffusion
from train.reporting.bad_samples import BadSamples
from train.reporting.metrics import Metrics
from train.reporting.metrics_writer import MetricsWriter
from train.resilience.monitor import RankMonitor
from train.resilience.skipped import SkippedSteps
from train.step import StepResult, Trainer
from train.step_totals import StepTotals


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
    """Race them; then time each part of our step alone, and count what a step of each asks of torch."""
    world, config = stage.world, stage.config
    steps = range(1, config.steps + 1)
    batches = micro_batches(stage.stream, stage.plan, world.rank, steps, pin_memory=world.device.type == "cuda")
    batches = itertools.chain([next(batches)], batches)  # forks the workers while there is little memory to share
    race = Race(stage, find_opponents(stage))
    context = stage.open_context(folder)
    engine = stage.make_engine()
    racer = Racer(stage.model, stage.objective, engine, None, world.device)
    racer.race, racer.average = race, Ema(config.ema, engine)
    writer = MetricsWriter(context.run, context.attempt, 1) if world.is_main_process else None
    saver, skipped = Saver(context, engine, racer.average, None), SkippedSteps(world, engine, stage.stream, 0)
    monitor = RankMonitor(context)
    metrics = Metrics(context, engine, saver, skipped, BadSamples(context, 1), writer)
    loop.run_steps(context, steps, racer, batches, saver, [skipped, metrics])
    race.before(steps.stop)
    race.losses["ours"] = [result.loss.item() for result in race.results]
    monitor.stop()
    waits = [result.data_wait for result in race.results[stage.args.warm :]]
    parts = {"samples": statistics.median(waits)} | parts_alone(stage, racer, saver, metrics)
    if writer is not None:
        writer.close()
    return {"laps": race.laps, "losses": race.losses, "parts": parts, "counts": counts(stage, racer, race)}


def counts(stage: Stage, racer: Racer, race: Race) -> dict[str, dict[str, int]]:
    """By contestant; ours with the average."""
    last = stage.config.steps
    batches = [stage.stream[range(stage.plan.micro_batch)]] * stage.plan.accumulation
    trainer = Trainer(stage.model, stage.objective, racer.engine, racer.average, stage.world.device)
    rate = compute_learning_rate(stage.config, last, last)

    def ours() -> None:
        trainer.step(last, rate, iter(batches), lambda: None)
        bool(trainer.engine.skipped)

    found = {"ours": count_all(ours, stage.world.device)}
    for name, step in race.opponents.items():
        found[name] = count_all(lambda step=step: step(last), stage.world.device)
    return found


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
    data, index, m = stage.config.data, stage.stream.index, stage.plan.micro_batch

    def decode() -> None:
        with index.open(index[0]) as file:
            load_crop(file, data, list_crop_sizes(data)[0], (0.5, 0.5), False)

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
        attempt._prepare_torch(stage.config, world)  # for every contestant
        measured = {"parameters": sum(model.weights.sizes.values()), **run(stage, Path(temporary, "run"))}
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
