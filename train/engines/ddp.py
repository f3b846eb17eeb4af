"""ZeRO stage 0: nothing is sharded. torch's DistributedDataParallel, and on one rank the plain module."""

from contextlib import nullcontext
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from configs.schema import RunConfig
from store.run.attempt_plan import AttemptPlan
from store.run.run_dir import Attempt
from train.engines.base import Engine, Fragment, WeightReader, materialise
from train.engines.torch_engine import Master, TorchEngine
from train.process_group import World


def prepare(device: torch.device) -> None:
    """Nothing takes long here."""


def make_engine(
    module: torch.nn.Module, weights: WeightReader, config: RunConfig, attempt: Attempt, world: World
) -> Engine:
    """`module` as replicas, one on each rank."""
    accumulation = AttemptPlan.read(attempt.plan_path).gradient_accumulation_steps
    return ReplicaEngine(module, weights, config, accumulation, world)


class ReplicaEngine(TorchEngine):
    """Every rank holds everything. The weights of the passes are the masters, so it trains in fp32 alone."""

    def __init__(
        self, module: torch.nn.Module, weights: WeightReader, config: RunConfig, accumulation: int, world: World
    ):
        materialise(module, weights, torch.float32, world.device)
        trained = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
        super().__init__({name: parameter.numel() for name, parameter in trained.items()}, config, accumulation, world)
        self.module = module
        self._replica = DistributedDataParallel(module, gradient_as_bucket_view=True) if world.size > 1 else None
        masters = [Master(name, 0, parameter) for name, parameter in trained.items()]
        # DistributedDataParallel takes the mean over the ranks itself, in fp32, on its way into the buckets
        self._hold(masters, _equal_share(self.sizes, world), summed=accumulation)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._replica is None:
            return self.module(*args, **kwargs)
        # whether a backward pass reduces is settled in its forward pass
        with nullcontext() if self._is_last else self._replica.no_sync():
            return self._replica(*args, **kwargs)

    def replicas(self) -> list[torch.Tensor]:
        return [self.tensor(fragment, key) for key in self.state_keys for fragment in self.held]

    def publish(self) -> None:
        """The masters are what passes see."""

    def _measure_norm(self, gradients: list[torch.Tensor]) -> torch.Tensor:
        return torch.nn.utils.get_total_norm(gradients)


def _equal_share(sizes: dict[str, int], world: World) -> list[Fragment]:
    """All parameters end to end, cut into one equal share per rank, so that each element has one owner.

    A share begins and ends wherever it falls, so its first and last fragments may be parts of a parameter.
    """
    share = -(-sum(sizes.values()) // world.size)
    share_begin = world.rank * share
    share_end = share_begin + share
    owned = []
    begin = 0  # of this parameter, in all of them end to end
    for name, size in sizes.items():
        low = max(share_begin - begin, 0)
        high = min(share_end - begin, size)
        if low < high:
            owned.append(Fragment(name, low, high - low))
        begin += size
    return owned
