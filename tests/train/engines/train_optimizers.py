"""The program of test_optimizers: each optimizer in each engine, against a plain loop of whole tensors.

Argument: cases as JSON: [[engine, optimizer, decay, precision, offload], …], an engine being a name in tests.engines.
Prints a line of JSON for each: the case, and what `compare` found.
"""

import json
import os
import sys
from functools import partial

import torch

from configs.schema import RunConfig
from configs.solve.batch import BatchPlan, Shape
from tests.engines import SETTINGS, build_engine
from tests.gather import gather, read_values
from tests.weights import ModuleWeights
from train import process_group
from train.engines.base import DTYPES

BATCH, STEPS, SAVED, SPOILED, LR, DECAY = 24, 7, 4, 3, 3e-3, 0.1
CLIP = 1e9 if os.environ["WORLD_SIZE"] == "1" else 0.3  # which nothing reaches, or every step


class Net(torch.nn.Module):
    """Kernels of 3 × 3 and 1 × 1, matrices, norms and biases, some of more than 4096 elements, and none of them a
    multiple of 256 ranks' shares."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.kernel, self.point = torch.nn.Conv2d(8, 66, 3, padding=1), torch.nn.Conv2d(66, 8, 1)
        self.norm, self.first, self.second = torch.nn.LayerNorm(128), torch.nn.Linear(128, 70), torch.nn.Linear(70, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.point(torch.nn.functional.silu(self.kernel(x)))
        return self.second(torch.nn.functional.silu(self.first(self.norm(x.flatten(1)))))


def loss_of(net, step: int, samples: slice, dtype: torch.dtype) -> torch.Tensor:
    """The mean loss of some samples of a step; not finite in the step that is SPOILED."""
    draw = torch.Generator().manual_seed(step)
    x, y = torch.randn(BATCH, 8, 4, 4, generator=draw)[samples], torch.randn(BATCH, 64, generator=draw)[samples]
    loss = ((net(x.to(dtype)).float() - y) ** 2).mean()
    return loss * torch.nan if step == SPOILED else loss


def train_plainly(config: RunConfig) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses, and flattened weights: the library's own optimizer over whole tensors, one batch, torch's clipping."""
    net, settings = Net(), config.optimizer
    groups = [{"params": [p for p in net.parameters() if p.dim() > 1]}]
    groups.append({"params": [p for p in net.parameters() if p.dim() < 2]})
    if settings.decay == "matrices":
        groups[1]["weight_decay"] = 0.0
    if settings.name == "adafactor":
        optimizer = torch.optim.Adafactor(groups, lr=LR, weight_decay=DECAY)
    elif settings.name == "adamw":
        optimizer = torch.optim.AdamW(groups, lr=LR, weight_decay=DECAY, fused=True)
    else:
        from bitsandbytes.optim import AdamW8bit

        optimizer = AdamW8bit(groups, lr=LR, weight_decay=DECAY)
    losses = []
    for step in range(STEPS):
        loss = loss_of(net, step, slice(None), torch.float32)
        losses.append(loss.item())
        if step != SPOILED:
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), CLIP)
            optimizer.step()
    return losses, {name: p.detach().flatten() for name, p in net.named_parameters()}


class Training:
    """One engine on this world, and what it did."""

    def __init__(self, world, config: RunConfig):
        self.world, self.config = world, config
        self.plan = BatchPlan(Shape(1, world.size), BATCH // (2 * world.size) if world.size > 1 else BATCH, 1)
        if world.size > 1:
            self.plan = BatchPlan(self.plan.shape, self.plan.micro_batch, 2)
        net = Net()
        self.engine = build_engine(net, ModuleWeights(net), config, self.plan, world)
        self.losses: list[float] = []

    def train(self, steps: range) -> None:
        micro, accumulation = self.plan.micro_batch, self.plan.accumulation
        for step in steps:
            total = 0.0
            for number in range(accumulation):
                first = (number * self.world.size + self.world.rank) * micro
                dtype = DTYPES[self.config.precision]
                loss = loss_of(self.engine, step, slice(first, first + micro), dtype)
                self.engine.backward(loss)
                self.engine.step()
                total += loss.item()
            assert self.engine.skipped == (step == SPOILED)
            self.losses.append(self.world.sum([total])[0] / (accumulation * self.world.size))

    def copy_state(self) -> dict[str, dict]:
        return {key: read_values(self.engine, key) for key in self.engine.state_keys}

    def gather_state(self) -> dict[str, dict[str, torch.Tensor]]:
        """All that a checkpoint would hold, on every rank."""
        state = {}
        for key, values in self.copy_state().items():
            state[key] = self.world.broadcast(gather(self.world, values.keys(), values.values()))
        return state


def is_equal(first: dict[str, dict], second: dict[str, dict]) -> bool:
    assert first.keys() == second.keys()
    return all(torch.equal(first[key][name], second[key][name]) for key in first for name in first[key])


def compare(world, config: RunConfig) -> dict[str, object]:
    """Train with a step that is skipped, save in between, and go on from there in a new engine of the same shape."""
    training = Training(world, config)
    fresh = training.copy_state()
    training.train(range(SPOILED))
    before = training.copy_state()
    training.train(range(SPOILED, SPOILED + 1))
    is_untouched = is_equal(before, training.copy_state())
    training.train(range(SPOILED + 1, SAVED))
    saved, counters = training.gather_state(), training.engine.counters(SAVED)
    training.train(range(SAVED, STEPS))

    resumed = Training(world, config)
    for key in resumed.engine.state_keys:
        resumed.engine.load(key, partial(read_part, saved[key]))
    resumed.engine.publish()
    resumed.engine.set_counters(SAVED, counters)
    is_loaded = is_equal(saved, resumed.gather_state())
    resumed.train(range(SAVED, STEPS))

    losses, weights = train_plainly(config)
    found = training.gather_state()["weights"]
    distance = sum(float((found[n] - weights[n]).square().sum()) for n in weights) ** 0.5
    size = sum(float(weights[n].square().sum()) for n in weights) ** 0.5
    pairs = [pair for step, pair in enumerate(zip(training.losses, losses, strict=True)) if step != SPOILED]
    return {
        "starts at zero": all(not values.any() for key in fresh for values in fresh[key].values() if key != "weights"),
        "untouched": is_untouched,
        "counters": [counters["optimizer_step"], counters["skipped_steps"]],
        "loaded": is_loaded,
        "resumed": resumed.losses == training.losses[SAVED:]
        and is_equal(*map(Training.copy_state, (training, resumed))),
        "loss": max(abs(mine - plain) / plain for mine, plain in pairs),
        "weights": distance / size,
    }


def read_part(values: dict[str, torch.Tensor], name: str, offset: int, length: int) -> torch.Tensor:
    return values[name].narrow(0, offset, length)


def main(cases: str) -> None:
    world = process_group.init_process_group(int(os.environ["WORLD_SIZE"]))
    for engine, optimizer, decay, precision, offload in json.loads(cases):
        config = RunConfig(
            name="optimizers",
            model="-",
            data={"images": "-"},
            batch=BATCH,
            lr=LR,
            grad_clip=CLIP,
            precision=precision,
            offload=offload,
            optimizer={"name": optimizer, "decay": decay, "weight_decay": DECAY},
            **SETTINGS[engine],
        )
        found = compare(world, config)
        if world.is_main_process:
            print(json.dumps([[engine, optimizer, decay, precision, offload], found]), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
