"""What all contestants of a benchmark share: a model, its samples, and the config of one engine."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from bench.unets import RandomWeights, draw_condition, make_unet
from configs.schema import RunConfig
from configs.solve.batch import BatchPlan, Shape
from configs.solve.settle import UNKNOWN_ZERO
from store.dataset.build import build_index
from store.dataset.sources.image_folder import ImageFolder
from store.run.attempt_plan import AttemptPlan
from store.run.run_dir import RunDir
from tests.engines import SETTINGS, build_engine
from train import process_group
from train.context import RankContext
from train.data.stream import Stream, list_positions
from train.demo.make_base import make_tokenizer
from train.engines.base import DTYPES, Engine, load_parameters
from train.models.frozen import FrozenPart
from train.models.stable_diffusion import StableDiffusion
from train.models.vae import FrozenVae
from train.objective import make_objective
from train.objective.loss import Objective
from train.progress import Progress

NO_STOP = SimpleNamespace(received=False, reason=None, since=None)  # train's own would keep Ctrl-C from us


class InMemory(StableDiffusion):
    """A model whose latents `x_0` and `text` are there already."""

    def latents(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.x_0

    def condition(self, batch: dict[str, torch.Tensor]) -> dict[str, Any]:
        return self.told


class MadePart(FrozenPart):
    """A frozen part that lies in no folder."""

    def __init__(self, module: torch.nn.Module):
        self.module = module

    def load(self, reason: str) -> torch.nn.Module:
        return self.module


def make_model(args: SimpleNamespace, frozen: torch.device) -> StableDiffusion:
    """Stable Diffusion 1.5 with random weights: VAE and text encoder in full size on `frozen` (torch's meta device
    where nobody calls them), the UNet as args."""
    torch.manual_seed(0)
    dtype, tokenizer = DTYPES[args.precision], make_tokenizer()
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    large = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    text = CLIPTextConfig(vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, **large)
    with frozen:
        vae = AutoencoderKL(block_out_channels=(128, 256, 512, 512), layers_per_block=2, **blocks)
        parts = [part.requires_grad_(False).eval().to(dtype) for part in (vae, CLIPTextModel(text))]
    unet = make_unet(args.unet, args.side)
    return StableDiffusion(
        folder=Path(),
        denoiser=unet,
        weights=RandomWeights(unet),
        vae=FrozenVae(MadePart(parts[0]), dict(parts[0].config)),
        text_part=MadePart(parts[1]),
        tokenizer=tokenizer,
        noise_scheduler=DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012),
        dtype=dtype,
    )


@dataclass
class Stage:
    """One engine on one world: what the contestants share."""

    args: SimpleNamespace
    world: process_group.World
    model: InMemory
    objective: Objective
    config: RunConfig
    plan: BatchPlan
    stream: Stream

    def unet(self) -> UNet2DConditionModel:
        """The UNet in fp32, on the device."""
        unet = make_unet(self.args.unet, self.args.side)
        load_parameters(unet, self.model.weights, torch.float32, self.world.device)
        return unet

    def adamw(self, unet: torch.nn.Module) -> torch.optim.Optimizer:
        """As fast as torch has it, for every contestant."""
        o = self.config.optimizer
        return torch.optim.AdamW(unet.parameters(), self.config.lr, o.betas, o.eps, o.weight_decay, fused=True)

    def open_context(self, folder: Path) -> RankContext:
        """Of a run of each rank's own, which no other one misses. Its last step is never made, as that would save."""
        shape, split = self.plan.shape, (self.plan.micro_batch, self.plan.accumulation)
        length = (self.config.steps + 1, "random", "0" * 16, len(self.stream.index), "")
        plan = AttemptPlan(shape.nodes, shape.gpus_per_node, *split, *length)
        run = RunDir(folder)
        attempt = run.open_attempt()
        plan.write(attempt.plan_path)
        return RankContext(run, attempt, plan, self.config, self.world, Progress(), NO_STOP)

    def make_engine(self) -> Engine:
        """Ours, around the model's denoiser. Once."""
        return build_engine(self.model.denoiser, self.model.weights, self.config, self.plan, self.world)

    def loss(self, denoiser: Callable[..., Any], noise: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        return self.objective.loss(denoiser, self.model.x_0, noise, timestep, self.model.told)

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


def make_stage(args: SimpleNamespace, world: process_group.World, model: StableDiffusion, images: Path) -> Stage:
    plan = BatchPlan(Shape(1, world.size), args.micro_batch, args.accumulation)
    keys = {"batch": plan.batch, "micro_batch": plan.micro_batch, "precision": args.precision}
    keys |= SETTINGS[args.engine] | getattr(args, "settings", {})
    data = {"images": str(images), "resolution": 8 * args.side, "workers": args.workers}
    steps = args.warm + args.rounds
    config = RunConfig(name="bench", model="random", data=data, steps=steps, ema=True, report_every_steps=1, **keys)
    if config.zero == "auto":  # under FSDP2, which has no stages: what an attempt's plan makes of it
        config = config.model_copy(update={"zero": UNKNOWN_ZERO})
    objective = make_objective(config, model.noise_scheduler, model.dtype, world.device)
    index = build_index([ImageFolder(images)], None).index
    stream = Stream(config, index, model, objective.timestep)
    ready = InMemory(**{field.name: getattr(model, field.name) for field in fields(model)})
    drawn = torch.Generator().manual_seed(2)
    ready.x_0 = torch.randn(plan.micro_batch, 4, args.side, args.side, generator=drawn).to(world.device)
    ready.told = draw_condition(args.unet, plan.micro_batch, world.device, model.dtype)
    return Stage(args, world, ready, objective, config, plan, stream)
