"""ZeRO stage 0: nothing is sharded. torch's DistributedDataParallel, and on one rank the plain module."""

from contextlib import nullcontext
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from train.engines.base import Fragment, WeightReader, load_parameters
from train.engines.torch_engine import Master, Placement, TorchEngine
from train.process_group import World


class ReplicaEngine(TorchEngine):
    """Every rank holds everything. The weights of the passes are the masters, so it trains in fp32 alone."""

    def _place(self, module: torch.nn.Module, weights: WeightReader) -> Placement:
        world = self._world
        load_parameters(module, weights, torch.float32, world.device)
        self.module = module
        self._replica = _replicate(module) if world.size > 1 else None
        trained = [(name, value) for name, value in module.named_parameters() if value.requires_grad]
        # DistributedDataParallel takes the mean over the ranks itself, in fp32, on its way into the buckets
        return Placement(
            masters=[Master(name, 0, parameter) for name, parameter in trained],
            owned=_equal_share(self.sizes, world),
            summed=self.accumulation,
        )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._replica is None:
            return self.module(*args, **kwargs)
        # whether a backward pass reduces is settled in its forward pass
        with nullcontext() if self._is_last else self._replica.no_sync():
            return self._replica(*args, **kwargs)

    def replicas(self) -> list[torch.Tensor]:
        frozen = [parameter.detach() for parameter in self.module.parameters() if not parameter.requires_grad]
        return [*self._list_tensors(), *frozen]

    def publish(self) -> None:
        """The masters are what passes see."""

    def _measure_norm(self, gradients: list[torch.Tensor]) -> torch.Tensor:
        return torch.nn.utils.get_total_norm(gradients)


class _ForwardOrder(torch.nn.Module):
    """`module`, whose parameters are listed as a forward pass meets them: DistributedDataParallel reduces from the last
    to the first while the backward pass goes on, and waits for each in its turn. diffusers lists a UNet's middle after
    its upper half."""

    def __init__(self, module: torch.nn.Module):
        super().__init__()
        children = dict(module.named_children())
        if "mid_block" in children and "up_blocks" in children:
            names = [name for name in children if name != "up_blocks"]
            names.insert(names.index("mid_block") + 1, "up_blocks")
            self.in_order = torch.nn.ModuleList(children[name] for name in names)
        self.module = module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The module's; without arguments a scalar whose gradient comes to every parameter, from the last to the first,
        and is zero."""
        if args or kwargs:
            return self.module(*args, **kwargs)
        return sum(0.0 * parameter.sum() for parameter in self.parameters() if parameter.requires_grad)


def _replicate(module: torch.nn.Module) -> DistributedDataParallel:
    """Rank 0's weights are not sent, which would take more room for a moment: every rank has read the same ones.

    After its first backward pass DistributedDataParallel makes the buckets of gradients anew, in the order in which
    these came. Three or more ranks then add in another order, and the first step after a resume would have other bits
    than the same step of a run that went on: so the first pass is none of a step's.
    """
    replica = DistributedDataParallel(_ForwardOrder(module), gradient_as_bucket_view=True, init_sync=False)
    replica().backward()
    for parameter in module.parameters():
        parameter.grad = None
    return replica


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
