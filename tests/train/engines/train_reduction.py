"""The program of test_reduction: the gradient that AdamW gets, against the mean of all ranks' own unscaled gradients.

Arguments: cases as JSON: [[engine, precision, offload], …], an engine being a name in tests.engines. Each rank computes
the reference by itself: one plain backward pass per micro-batch in the same dtype, summed over micro-batches and ranks
in fp64, divided once at the end.
AdamW's gradient is read off its state, as any engine has it: with β1 = 1/2, exp_avg is exactly half of the first one.
"""

import json
import os
import sys

import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator

from configs.schema import RunConfig
from configs.solve.batch import BatchPlan, Shape
from tests.engines import SETTINGS, build_engine
from tests.gather import gather, read_values
from tests.weights import ModuleWeights
from train import process_group
from train.engines.base import DTYPES

ACCUMULATION, MICRO = 3, 8
FP16_SCALE = 2.0**16  # DeepSpeed's first loss scale: without it small gradients vanish in the reference, too


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = torch.nn.Linear(64, 96), torch.nn.Linear(96, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.nn.functional.silu(self.first(x)))


def loss_of(net: torch.nn.Module, micro_batch: int, rank: int, dtype: torch.dtype) -> torch.Tensor:
    """The mean loss of one micro-batch, small enough that fp16's first loss scale overflows nothing."""
    draw = torch.Generator().manual_seed(100 * rank + micro_batch)
    x, y = torch.randn(MICRO, 64, generator=draw).to(dtype), torch.randn(MICRO, 64, generator=draw)
    return ((net(x).float() - y) ** 2).mean() / 64


def mean_gradient(world: process_group.World, precision: str) -> dict[str, torch.Tensor]:
    """Mean over all micro-batches of all ranks, fp64, by parameter."""
    dtype, scale = DTYPES[precision], FP16_SCALE if precision == "fp16" else 1.0
    net = Net().to(dtype)
    total = {name: torch.zeros(p.shape, dtype=torch.float64) for name, p in net.named_parameters()}
    for micro_batch in range(ACCUMULATION):
        net.zero_grad()
        (loss_of(net, micro_batch, world.rank, dtype) * scale).backward()
        for name, p in net.named_parameters():
            total[name] += p.grad.double()
    for value in total.values():
        dist.all_reduce(value)
        value /= ACCUMULATION * world.size * scale
    return total


def given_gradient(world: process_group.World, engine: str, precision: str, offload: bool) -> dict | None:
    """What the engine hands to AdamW, whole tensors on rank 0; and the norm that it reports."""
    plan = BatchPlan(Shape(1, world.size), MICRO, ACCUMULATION)
    config = RunConfig(
        name="reduction",
        model="-",
        data={"images": "-"},
        batch=plan.batch,
        micro_batch=MICRO,
        **SETTINGS[engine],
        precision=precision,
        offload=offload,
        grad_clip=1e6,
        optimizer={"betas": [0.5, 0.999]},
    )
    net = Net()
    engine = build_engine(net, ModuleWeights(net), config, plan, world)
    for micro_batch in range(ACCUMULATION):
        unet_pass = loss_of(engine, micro_batch, world.rank, DTYPES[precision])
        engine.backward(unet_pass)
        engine.step()
    moments = read_values(engine, "exp_avg")
    found = gather(world, moments.keys(), [2 * values for values in moments.values()])
    return {"gradient": found, "norm": engine.gradient_norm()}


def main(cases: str) -> None:
    world = process_group.init_process_group(int(os.environ["WORLD_SIZE"]))
    get_accelerator().is_fp16_supported = lambda: True  # torch computes fp16 on a CPU, if slowly
    for engine, precision, offload in json.loads(cases):
        wanted = mean_gradient(world, precision)
        found = given_gradient(world, engine, precision, offload)
        if not world.is_main_process:
            continue
        whole = torch.cat([value.flatten() for value in wanted.values()])
        given = torch.cat([found["gradient"][name].double() for name in wanted])
        error = float((given - whole).norm() / whole.norm())
        norm_error = abs(float(found["norm"]) / float(whole.norm()) - 1)
        print(json.dumps([engine, precision, offload, error, norm_error]))


if __name__ == "__main__":
    main(*sys.argv[1:])
