"""What the contestants of bench/step.py and bench/checkpoint.py share: a model, its samples and one ZeRO stage."""

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

from configs.schema import RunConfig
from configs.solve.batch import BatchPlan, Shape
from store.dataset.listing import list_samples
from tests.weights import ModuleWeights
from train import process_group
from train.data.stream import Stream, list_positions
from train.demo.make_base import make_tokenizer
from train.engines.base import DTYPES
from train.models.stable_diffusion import StableDiffusion
from train.objective import make_objective
from train.objective.loss import Objective

WIDTHS = {"small": (96, 192, 320, 320), "medium": (128, 256, 416, 416), "sd15": (320, 640, 1280, 1280)}


class InMemory(StableDiffusion):
    """A model whose latents `x_0` and `text` are there already."""

    def latents(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.x_0

    def condition(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"encoder_hidden_states": self.text}


def make_unet(args: SimpleNamespace) -> UNet2DConditionModel:
    torch.manual_seed(1)
    width, side = WIDTHS[args.unet], args.side
    return UNet2DConditionModel(side, block_out_channels=width, cross_attention_dim=768, attention_head_dim=8).train()


def make_model(args: SimpleNamespace, device: torch.device) -> StableDiffusion:
    """Stable Diffusion 1.5 with random weights: VAE and text encoder in full size, the UNet as args."""
    torch.manual_seed(0)
    dtype, tokenizer = DTYPES[args.precision], make_tokenizer()
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    vae = AutoencoderKL(block_out_channels=(128, 256, 512, 512), layers_per_block=2, **blocks)
    large = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    text = CLIPTextConfig(vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, **large)
    vae, text_encoder = (x.requires_grad_(False).eval().to(device, dtype) for x in (vae, CLIPTextModel(text)))
    noise_scheduler = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    unet = make_unet(args)
    return StableDiffusion(Path(), unet, ModuleWeights(unet), vae, text_encoder, tokenizer, noise_scheduler, dtype)


@dataclass
class Stage:
    """One ZeRO stage on one world: what the contestants share."""

    args: SimpleNamespace
    world: process_group.World
    model: InMemory
    objective: Objective
    config: RunConfig
    plan: BatchPlan
    stream: Stream

    def unet(self) -> UNet2DConditionModel:
        return make_unet(self.args)

    def adamw(self, unet: UNet2DConditionModel) -> torch.optim.Optimizer:
        o, fused = self.config.optimizer, self.world.device.type == "cuda"
        return torch.optim.AdamW(unet.parameters(), self.config.lr, o.betas, o.eps, o.weight_decay, fused=fused)

    def loss(self, denoiser: Callable[..., Any], noise: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        return self.objective.loss(denoiser, self.model.x_0, noise, timestep, self.model.condition({}))

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
    cut = {"batch": plan.batch, "micro_batch": plan.micro_batch, "precision": args.precision, "zero": args.stage}
    data = {"images": str(images), "resolution": 8 * args.side}
    steps = args.warm + args.rounds
    config = RunConfig(name="bench", model="random", data=data, steps=steps, ema=True, report_every_steps=1, **cut)
    objective = make_objective(config, model.noise_scheduler, model.dtype, world.device)
    shape = model.latent_shape(8 * args.side)
    stream = Stream(config, list_samples(images).samples, model.inputs, shape, objective.timestep)
    ready = InMemory(**{field.name: getattr(model, field.name) for field in fields(model)})
    drawn = torch.Generator().manual_seed(2)
    ready.x_0 = torch.randn(plan.micro_batch, 4, args.side, args.side, generator=drawn).to(world.device)
    ready.text = torch.randn(plan.micro_batch, 77, 768, generator=drawn).to(world.device, model.dtype)
    return Stage(args, world, ready, objective, config, plan, stream)
