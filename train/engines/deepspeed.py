"""DeepSpeed's ZeRO as an engine: the sharding is its, the optimizer and the learning rate are ours."""

import ctypes
import json
import math
from collections.abc import Mapping
from typing import Any, Self

import deepspeed
import torch

from configs.schema import RunConfig
from configs.solve.deepspeed import gradient_divisor
from store.run.run_dir import Attempt
from train.engines import cpu_extension, deepspeed_state, zero3_linear
from train.engines.base import (
    DTYPES,
    WEIGHTS,
    Counters,
    Fragment,
    WeightReader,
    replace_parameters,
)
from train.engines.held_state import HeldState, Place
from train.engines.optimizers import make_optimizer
from train.process_group import World


@torch.no_grad()
def _lend_room(module: torch.nn.Module, weights: WeightReader, dtype: torch.dtype, device: torch.device) -> None:
    """Let all trained parameters of `module` lie in one and the same memory, for DeepSpeed to make its own of them.

    It copies them into flat ones, which are filled from `weights` afterwards: with a memory for each, a rank would hold
    all of them twice meanwhile. What is not trained has its values at once.
    """
    largest = max(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
    shared = torch.zeros(largest, dtype=dtype, device=device)

    def lend(name: str, parameter: torch.Tensor) -> torch.Tensor:
        if parameter.requires_grad:
            return shared[: parameter.numel()].view(parameter.shape)
        return weights.read(name, 0, parameter.numel()).view(parameter.shape).to(device, dtype)

    replace_parameters(module, lend)


def _trim_heap() -> None:
    """Give the system back what is free: glibc keeps it, and ZeRO 3 has just freed a shard's worth in small pieces."""
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):  # another C library has none
        library.malloc_trim(0)


class ZeroEngine(HeldState):
    """The engine of `train.engines.base`, under ZeRO 1, 2 or 3."""

    def __init__(
        self,
        module: torch.nn.Module,
        weights: WeightReader,
        config: RunConfig,
        rendered: Mapping[str, Any],
        device: torch.device,
    ) -> None:
        """`rendered`: see configs/solve/deepspeed.py. Raises LockstepError for a DeepSpeed that is not known."""
        self.prepare(device)  # a program without time-outs to fear need not have called it before
        _lend_room(module, weights, DTYPES[config.precision], device)
        self._name_state(module, config)
        trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self._optimizer = make_optimizer(trained, config)
        self._optimizer.register_step_pre_hook(self._take_mean)
        if config.zero == 3:
            zero3_linear.round_as_torch()
        self._deepspeed, *_ = deepspeed.initialize(
            model=module, optimizer=self._optimizer, config=dict(rendered), dist_init_required=False
        )
        deepspeed_state.check_state_layout(self._deepspeed)
        deepspeed_state.keep_smallest_loss_scale(self._deepspeed)
        self._stage, self._offload = config.zero, config.offload
        self.module: torch.nn.Module = self._deepspeed.module
        self.accumulation = int(rendered["gradient_accumulation_steps"])
        self._gradient_divisor = gradient_divisor(rendered)
        self._places = deepspeed_state.find_owned(self._deepspeed)
        self.held = self.owned = list(self._places)
        self._fill(weights)

    @staticmethod
    def prepare(device: torch.device) -> None:
        """Compile DeepSpeed's CPU extension where this rank needs it: about 40 s the first time."""
        if device.type == "cpu":
            cpu_extension.build_extension()

    @classmethod
    def for_attempt(
        cls, module: torch.nn.Module, weights: WeightReader, config: RunConfig, attempt: Attempt, world: World
    ) -> Self:
        """`module` under the DeepSpeed config that `attempt` was planned with."""
        return cls(module, weights, config, json.loads(attempt.deepspeed_path.read_text()), world.device)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._deepspeed(*args, **kwargs)

    def set_learning_rate(self, rate: float) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = rate

    def backward(self, loss: torch.Tensor) -> None:
        self._deepspeed.backward(loss, scale_wrt_gas=False)

    def step(self) -> None:
        is_last = self._deepspeed.is_gradient_accumulation_boundary()
        self._deepspeed.step()
        if is_last and self._offload and self.skipped:
            deepspeed_state.drop_gradients(self._deepspeed)

    @property
    def skipped(self) -> bool:
        return not self._deepspeed.was_step_applied()

    @property
    def skipped_steps(self) -> int:
        return int(self._deepspeed.skipped_steps)

    @property
    def loss_scale(self) -> float | None:
        scaler = deepspeed_state.read_loss_scaler(self._deepspeed)
        return scaler["cur_scale"] if scaler else None

    def gradient_norm(self) -> float:
        if self.skipped:
            return math.inf
        return float(self._deepspeed.get_global_grad_norm()) / self._gradient_divisor

    def _locate(self, fragment: Fragment) -> Place:
        return self._places[fragment]

    def publish(self) -> None:
        deepspeed_state.publish_masters(self._deepspeed)

    def replicas(self) -> list[torch.Tensor]:
        """ZeRO 1 and 2: the weights that passes see, of which each rank has gathered from all what is trained."""
        if self._stage == 3:
            return []
        return [parameter.detach() for parameter in self.module.parameters()]

    def counters(self, step: int) -> Counters:
        applied = self._count_updates()
        return {
            "optimizer_step": applied,
            "skipped_steps": step - applied,
            "loss_scaler": deepspeed_state.read_loss_scaler(self._deepspeed),
        }

    def set_counters(self, step: int, counters: Counters) -> None:
        applied = counters["optimizer_step"]
        self._set_update_count(applied)
        deepspeed_state.set_progress(self._deepspeed, step=step, applied=applied)
        deepspeed_state.set_loss_scaler(self._deepspeed, counters["loss_scaler"])

    def _fill(self, weights: WeightReader) -> None:
        """Give the masters what this rank holds of `weights`, and the passes all of them; make the optimizer's states.

        The states come last: what the ranks need to tell each other the weights is free again by then.
        """
        self.load(WEIGHTS, weights.read)
        self.publish()
        _trim_heap()
        self._make_states()

    def _take_mean(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """Make the mean of the sum that was reduced and clipped: fp32 in every stage, just before the optimizer."""
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if gradients and self._gradient_divisor > 1:
            torch._foreach_div_(gradients, self._gradient_divisor)
