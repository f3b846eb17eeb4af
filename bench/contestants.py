"""The least that trains, with each library: what our loop is measured against.

Each takes its samples from memory, clips, and updates with the same fused AdamW; none reports, saves or agrees on
anything.
"""

import contextlib
from collections.abc import Callable

import deepspeed
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

from bench.stage import Stage
from configs.solve.deepspeed import render_deepspeed
from train.engines import import_engine
from train.engines.blocks import find_blocks

Step = Callable[[int], torch.Tensor]  # makes step k, returns the mean loss over this rank's micro-batches


def bare_deepspeed(stage: Stage) -> Step:
    """The least that trains with DeepSpeed, under the config that our engine gets."""
    import_engine("deepspeed").prepare(stage.world.device)  # compiles what DeepSpeed would take a stale lock for
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
    """PyTorch alone, on several ranks DistributedDataParallel; bf16 as its users write it, fp32 weights under
    autocast."""
    device = stage.world.device
    unet = stage.unet()
    net = DistributedDataParallel(unet, gradient_as_bucket_view=True) if stage.world.size > 1 else unet
    optimizer = stage.adamw(unet)
    batches = stage.in_memory()

    def step(k: int) -> torch.Tensor:
        losses = []
        for number, (noise, timestep) in enumerate(batches[k - 1], 1):
            last = number == stage.plan.accumulation
            with contextlib.nullcontext() if last or net is unet else net.no_sync():
                with torch.autocast(device.type, torch.bfloat16, enabled=stage.config.precision == "bf16"):
                    losses.append(stage.loss(net, noise, timestep))
                (losses[-1] / stage.plan.accumulation).backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), stage.config.grad_clip)
        optimizer.step()
        optimizer.zero_grad()
        return torch.stack(losses).detach().mean()

    return step


def bare_fsdp2(stage: Stage) -> Step:
    """torch's fully_shard around each block and the rest, with fp32 shards and fp32 reduction."""
    unet, batches = stage.unet(), stage.in_memory()
    mesh = init_device_mesh(stage.world.device.type, (stage.world.size,))
    passes = torch.bfloat16 if stage.config.precision == "bf16" else None
    policy = MixedPrecisionPolicy(param_dtype=passes, reduce_dtype=torch.float32)
    for block in find_blocks(unet):
        fully_shard(block, mesh=mesh, mp_policy=policy, reshard_after_forward=stage.config.reshard)
    fully_shard(unet, mesh=mesh, mp_policy=policy, reshard_after_forward=stage.config.reshard)
    optimizer = stage.adamw(unet)

    def step(k: int) -> torch.Tensor:
        losses = []
        for number, (noise, timestep) in enumerate(batches[k - 1], 1):
            # whoever frees weights has no room for whole gradients either
            unet.set_requires_gradient_sync(stage.config.reshard or number == stage.plan.accumulation)
            losses.append(stage.loss(unet, noise, timestep))
            (losses[-1] / stage.plan.accumulation).backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), stage.config.grad_clip)
        optimizer.step()
        optimizer.zero_grad()
        return torch.stack(losses).detach().mean()

    return step


def find_opponents(stage: Stage) -> dict[str, Step]:
    """By name: `torch` always, and `bare`, the loop with the library that our engine is made of, where that is
    another."""
    opponents = {"torch": bare_torch(stage)}
    if stage.config.engine == "fsdp2":
        opponents["bare"] = bare_fsdp2(stage)
    elif stage.config.zero:
        opponents["bare"] = bare_deepspeed(stage)
    return opponents
