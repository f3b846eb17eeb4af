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
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import deepspeed
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from torch.nn.parallel import DistributedDataParallel
from transformers import CLIPTextConfig, CLIPTextModel

from configs.schema import RunConfig
from configs.solve.batch import BatchPlan, Shape
from configs.solve.deepspeed import render_deepspeed
from configs.solve.learning_rate import compute_learning_rate
from store.dataset.listing import list_samples
from store.run.attempt_plan import AttemptPlan
from store.run.run_dir import RunDir
from tests.tiny import make_images
from train import loop, process_group
from train.checkpoint.saver import Saver
from train.context import RankContext
from train.data.images import load_square
from train.data.stream import Stream, list_positions, micro_batches
from train.demo.make_base import make_tokenizer
from train.engines.ema import Ema
from train.engines.zero import Engine
from train.models.stable_diffusion import DTYPES, StableDiffusion
from train.objective.loss import loss
from train.reporting.metrics import Metrics
from train.reporting.metrics_writer import MetricsWriter
from train.resilience.monitor import RankMonitor
from train.resilience.progress import Progress
from train.resilience.skipped import SkippedSteps
from train.step import StepResult, Trainer
from train.step_totals import StepTotals

WIDTHS = {"small": (96, 192, 320, 320), "medium": (128, 256, 416, 416), "sd15": (320, 640, 1280, 1280)}
Step = Callable[[int], torch.Tensor]  # makes step k, returns the mean loss over this rank's micro-batches


class InMemory(StableDiffusion):
    """A model whose latents `x_0` and `text` are there already."""

    def encode_images(self, pixels: torch.Tensor, posterior: torch.Tensor) -> torch.Tensor:
        return self.x_0

    def encode_text(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.text


def make_unet(asked: SimpleNamespace) -> UNet2DConditionModel:
    torch.manual_seed(1)
    width, side = WIDTHS[asked.unet], asked.side
    return UNet2DConditionModel(side, block_out_channels=width, cross_attention_dim=768, attention_head_dim=8).train()


def make_model(asked: SimpleNamespace, device: torch.device) -> StableDiffusion:
    """Stable Diffusion 1.5 with random weights: VAE and text encoder in full size, the UNet as asked."""
    torch.manual_seed(0)
    dtype, tokenizer = DTYPES[asked.precision], make_tokenizer()
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    vae = AutoencoderKL(block_out_channels=(128, 256, 512, 512), layers_per_block=2, **blocks)
    large = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    text = CLIPTextConfig(vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, **large)
    vae, text_encoder = (x.requires_grad_(False).eval().to(device, dtype) for x in (vae, CLIPTextModel(text)))
    schedule = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    return StableDiffusion(Path(), make_unet(asked), vae, text_encoder, tokenizer, schedule, dtype)


@dataclass
class Stage:
    """One ZeRO stage on one world: what the contestants share."""

    asked: SimpleNamespace
    world: process_group.World
    model: InMemory
    config: RunConfig
    plan: BatchPlan
    stream: Stream

    def unet(self) -> UNet2DConditionModel:
        return make_unet(self.asked)

    def adamw(self, unet: UNet2DConditionModel) -> torch.optim.Optimizer:
        o, fused = self.config.optimizer, self.world.device.type == "cuda"
        return torch.optim.AdamW(unet.parameters(), self.config.lr, o.betas, o.eps, o.weight_decay, fused=fused)

    def in_memory(self) -> list[list[tuple[torch.Tensor, torch.Tensor]]]:
        """Noise and timesteps of every micro-batch of every step, and of one step after the last, on the device."""
        steps = range(1, self.config.steps + 2)
        drawn = [[self.stream[m] for m in list_positions(self.plan, self.world.rank, step)] for step in steps]
        device = self.world.device
        return [[(m["noise"].to(device), m["timestep"].to(device)) for m in step] for step in drawn]

    def clock(self) -> tuple[float, float]:
        """The time and this process's CPU time, once every rank and its device is done with what it was given."""
        self.finish()
        self.world.barrier()
        return time.perf_counter(), time.process_time()

    def finish(self) -> None:
        if self.world.device.type == "cuda":
            torch.cuda.synchronize()

    def seconds(self, part: Callable[[], Any], times: int = 11) -> float:
        """Median time of `part` alone."""
        found = []
        for _ in range(times):
            began, _ = self.clock()
            part()
            self.finish()
            found.append(time.perf_counter() - began)
        return statistics.median(found)


def make_stage(asked: SimpleNamespace, world: process_group.World, model: StableDiffusion, images: Path) -> Stage:
    plan = BatchPlan(Shape(1, world.size), asked.micro_batch, asked.accumulation)
    cut = {"batch": plan.batch, "micro_batch": plan.micro_batch, "precision": asked.precision, "zero": asked.stage}
    data = {"images": str(images), "resolution": 8 * asked.side}
    steps = asked.warm + asked.rounds
    config = RunConfig(name="bench", model="random", data=data, steps=steps, ema=True, report_every_steps=1, **cut)
    stream = Stream(config, list_samples(images).samples, model.tokenizer, model.latent_shape(8 * asked.side))
    ready = InMemory(**{field.name: getattr(model, field.name) for field in fields(model)})
    drawn = torch.Generator().manual_seed(2)
    ready.x_0 = torch.randn(plan.micro_batch, 4, asked.side, asked.side, generator=drawn).to(world.device)
    ready.text = torch.randn(plan.micro_batch, 77, 768, generator=drawn).to(world.device, model.dtype)
    return Stage(asked, world, ready, config, plan, stream)


def bare_deepspeed(stage: Stage) -> Step:
    """The least that trains with DeepSpeed."""
    unet, batches, model = stage.unet(), stage.in_memory(), stage.model
    rendered, optimizer = render_deepspeed(stage.config, stage.plan), stage.adamw(unet)
    engine, *_ = deepspeed.initialize(model=unet, optimizer=optimizer, config=rendered, dist_init_required=False)

    def step(k: int) -> torch.Tensor:
        losses = []
        for noise, timestep in batches[k - 1]:
            losses.append(loss(engine, model.schedule, model.x_0, noise, timestep, model.text))
            engine.backward(losses[-1])
            engine.step()
        return torch.stack(losses).detach().mean()

    return step


def bare_torch(stage: Stage) -> Step:
    """The same in PyTorch alone; bf16 as its users write it, fp32 weights under autocast."""
    device, config, model = stage.world.device, stage.config, stage.model
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
                    losses.append(loss(net, model.schedule, model.x_0, noise, timestep, model.text))
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
    engine = Engine(stage.unet(), config, render_deepspeed(config, stage.plan), world.device)
    racer = Racer(stage.model, engine, None, world.device)
    racer.race, racer.average = race, Ema(config.ema, engine.owned)
    context = make_context(stage, folder)
    writer = MetricsWriter(context.run, context.attempt, 1) if world.is_main_process else None
    saver, skipped = Saver(context, engine, racer.average, 0), SkippedSteps(world, engine, stage.stream, 0)
    monitor = RankMonitor(context)
    reporters = [skipped, Metrics(context, engine, saver, skipped, writer)]
    loop.run_steps(context, steps, racer, batches, saver, reporters)
    race.before(steps.stop)
    race.losses["ours"] = [result.loss.item() for result in race.results]
    monitor.stop()
    waits = [result.data_wait for result in race.results[stage.asked.warm :]]
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
    data, samples = stage.config.data, stage.stream.samples
    path, m = Path(data.images, samples[0].image), stage.plan.micro_batch
    batch = {key: value.to(stage.world.device) for key, value in stage.stream[range(m)].items()}
    return {
        "decode": stage.seconds(lambda: load_square(path, data, (0.5, 0.5), False)),
        "sample": stage.seconds(lambda: stage.stream.sample(0)),
        "VAE": stage.seconds(lambda: model.encode_images(batch["pixels"], batch["posterior"]), 3) / m,
        "text": stage.seconds(lambda: model.encode_text(batch["tokens"]), 3) / m,
    }


def main(options: str) -> None:
    asked = SimpleNamespace(**json.loads(options))
    world = process_group.init_process_group(asked.world_size)
    with tempfile.TemporaryDirectory() as temporary:
        model = make_model(asked, world.device)
        stage = make_stage(asked, world, model, make_images(Path(temporary, "images"), 64, 10 * asked.side))
        measured = {"parameters": sum(p.numel() for p in model.unet.parameters()), **run(stage, Path(temporary))}
        measured["encoding"] = encoding(stage, model)
    if world.is_main_process:
        Path(asked.records, "measured.json").write_text(json.dumps(measured))
    world.barrier()


if __name__ == "__main__":
    try:
        main(sys.argv[1])
    except Exception:  # noqa: BLE001
        traceback.print_exc()
        os._exit(1)  # Python would wait for workers and ranks that wait for this one
