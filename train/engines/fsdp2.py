"""torch's FSDP2 (`fully_shard`) as an engine: bf16 or fp32 passes, fp32 masters, fp32 reduction.

Each parameter is cut along its first dimension as torch.chunk cuts it, so that a rank's part is one run of its elements
(none where there are more ranks than rows). `reshard` says how long passes keep what they gather. True: a block's
weights are freed after its pass, and each micro-batch's gradient is reduced into the shards, as ZeRO 3 does. False:
weights stay through the step, gradients add up whole in fp32 and are reduced once, as ZeRO 1 does.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor

from configs.schema import RunConfig
from train.engines.base import DTYPES, Fragment, WeightReader
from train.engines.blocks import find_blocks
from train.engines.torch_engine import Master, Placement, TorchEngine
from train.process_group import World


class ShardedEngine(TorchEngine):
    """Every rank holds its shard of each parameter, in fp32; passes gather them in the dtype of `precision`."""

    def _place(self, module: torch.nn.Module, weights: WeightReader) -> Placement:
        world = self._world
        self._reshard = self._config.reshard
        self._sharded_modules = _shard(module, self._config, world)
        self.module = module
        self._sharded = dict(module.named_parameters())
        shards = {name: _find_shard(name, parameter, world) for name, parameter in self._sharded.items()}
        _read_shards(shards, weights)
        masters = [shards[name] for name in self.sizes]
        return Placement(
            masters=masters,
            owned=[Fragment(m.name, m.offset, m.values.numel()) for m in masters if m.values.numel()],
            summed=self.accumulation * world.size,
        )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)

    def backward(self, loss: torch.Tensor) -> None:
        if not self._reshard and self.accumulation > 1:
            self._root.set_requires_gradient_sync(self._is_last)
        loss.backward()

    def publish(self) -> None:
        """Let the next pass gather the weights anew."""
        for sharded in self._sharded_modules:
            sharded.reshard()

    def _update(self) -> None:
        for master in self._masters:
            gradient = self._sharded[master.name].grad
            master.values.grad = gradient.to_local() if isinstance(gradient, DTensor) else None
            self._sharded[master.name].grad = None
        super()._update()
        self.publish()

    @property
    def _root(self) -> FSDPModule:
        return self._sharded_modules[-1]

    def _measure_norm(self, gradients: list[torch.Tensor]) -> torch.Tensor:
        local = torch.nn.utils.get_total_norm(gradients)
        if self._world.size == 1:
            return local
        squares = local.double().square().to(self._world.device)
        dist.all_reduce(squares)
        return squares.sqrt().to(local)


def _shard(module: torch.nn.Module, config: RunConfig, world: World) -> list[FSDPModule]:
    """Cut the blocks of `module`, then the rest of it, the root, with room for their values. Each is then gathered, and
    reduced, in one collective."""
    cuda = world.device.type == "cuda"
    policy = MixedPrecisionPolicy(
        param_dtype=None if config.precision == "fp32" else DTYPES[config.precision],
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,  # each module gets what it would get in another engine
    )
    offload = CPUOffloadPolicy(pin_memory=cuda) if config.offload else OffloadPolicy()
    mesh = init_device_mesh(world.device.type, (world.size,))
    sharded = []
    for block in (*find_blocks(module), module):
        _make_room(block, DTYPES[config.precision], world.device)
        # the backward pass begins with the root's weights, so freeing them after the forward pass would gain nothing
        reshard = config.reshard and block is not module
        part = fully_shard(block, mesh=mesh, reshard_after_forward=reshard, mp_policy=policy, offload_policy=offload)
        part.set_reshard_after_backward(config.reshard, recurse=False)
        part.set_force_sum_reduction_for_comms(True)
        if world.size > 1:
            part.set_gradient_divide_factor(1.0)  # sums, as they are
        sharded.append(part)
    return sharded


def _make_room(module: torch.nn.Module, dtype: torch.dtype, device: torch.device) -> None:
    """Give every parameter of `module` that is not sharded yet memory on `device`, with no values: fp32 for a master,
    and `dtype`, that of the passes, for what is not trained."""
    for owner in module.modules():
        for name, parameter in list(owner.named_parameters(recurse=False)):
            if not isinstance(parameter, DTensor):
                kept = torch.float32 if parameter.requires_grad else dtype
                room = torch.empty(parameter.shape, dtype=kept, device=device)
                setattr(owner, name, torch.nn.Parameter(room, parameter.requires_grad))


def _find_shard(name: str, parameter: torch.nn.Parameter, world: World) -> Master:
    """This rank's part of a parameter, in the memory that passes gather it from."""
    sharded = parameter.detach()
    assert isinstance(sharded, DTensor)
    rows, row = parameter.shape[0], parameter.numel() // parameter.shape[0]
    first = min(rows, -(-rows // world.size) * world.rank)
    values = torch.nn.Parameter(sharded.to_local(), parameter.requires_grad)
    return Master(name, first * row, values)


@torch.no_grad()
def _read_shards(shards: dict[str, Master], weights: WeightReader) -> None:
    for name, shard in shards.items():
        values = shard.values
        values.copy_(weights.read(name, shard.offset, values.numel()).view(values.shape))
