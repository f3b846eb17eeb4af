"""What the engines made of torch alone have in common: masters that an optimizer updates, and the update itself.

Norm, clipping and the verdict whether the gradient is finite are numbers on the device, and torch's fused AdamW takes
them as they are: so its update touches memory once, no pass over the gradients is made but the norm's, and the host
waits for nothing (see `update_scaled`).
"""

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, Self

import torch

from configs.schema import RunConfig
from store.run.attempt_plan import AttemptPlan
from store.run.run_dir import Attempt
from train.engines.base import Counters, Fragment, WeightReader
from train.engines.held_state import HeldState, Place
from train.engines.optimizers import make_optimizer, update_scaled
from train.process_group import World


@dataclass(frozen=True, eq=False)
class Master:
    """Elements of the parameter `name` from `offset` on, flattened, or none of them: fp32, updated by the optimizer."""

    name: str
    offset: int
    values: torch.nn.Parameter


@dataclass(frozen=True)
class Placement:
    """Where one rank's part of the training state lies."""

    masters: list[Master]  # all that this rank updates
    owned: list[Fragment]  # those elements of them that it answers for
    summed: int  # mean gradients whose sum a step's gradient is


class TorchEngine(HeldState):
    """The engine of `train.engines.base` but for its passes, which a subclass makes."""

    module: torch.nn.Module

    def __init__(
        self, module: torch.nn.Module, weights: WeightReader, config: RunConfig, accumulation: int, world: World
    ):
        self._name_state(module, config)
        self.accumulation = accumulation
        self.skipped_steps = 0
        self.loss_scale: float | None = None  # there is no fp16 here
        self._config, self._world = config, world
        self._micro_batches = 0  # of the step that is being made
        placement = self._place(module, weights)
        self._masters, self._summed, self.owned = placement.masters, placement.summed, placement.owned
        self._by_name = {master.name: master for master in self._masters}
        everything = [Fragment(master.name, master.offset, master.values.numel()) for master in self._masters]
        self.held = [fragment for fragment in everything if fragment.length]
        self._optimizer = make_optimizer([master.values for master in self._masters], config)
        self._make_states()
        self._flags = _Flags(world.device)

    @staticmethod
    def prepare(device: torch.device) -> None:
        """Nothing takes long here, on any device."""
        return

    @classmethod
    def for_attempt(
        cls, module: torch.nn.Module, weights: WeightReader, config: RunConfig, attempt: Attempt, world: World
    ) -> Self:
        """`module` with the gradient accumulation steps that `attempt` was planned with."""
        accumulation = AttemptPlan.read(attempt.plan_path).gradient_accumulation_steps
        return cls(module, weights, config, accumulation, world)

    @abstractmethod
    def _place(self, module: torch.nn.Module, weights: WeightReader) -> Placement:
        """Take over `module`, as `self.module`, with `weights` as its values."""

    @abstractmethod
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The module's forward pass."""

    @abstractmethod
    def publish(self) -> None:
        """Let passes see the masters as they are now."""

    def set_learning_rate(self, rate: float) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = rate

    @property
    def _is_last(self) -> bool:
        """Whether this micro-batch is the last of its step."""
        return self._micro_batches == self.accumulation - 1

    def backward(self, loss: torch.Tensor) -> None:
        loss.backward()

    def step(self) -> None:
        is_last = self._is_last
        self._micro_batches = 0 if is_last else self._micro_batches + 1
        if is_last:
            self._update()

    @torch.no_grad()
    def _update(self) -> None:
        gradients = [gradient for master in self._masters if (gradient := master.values.grad) is not None]
        self._norm = self._measure_norm(gradients) / self._summed
        found_inf = (~torch.isfinite(self._norm)).float()
        self._flags.send(found_inf)
        clip = (self._config.grad_clip / (self._norm + 1e-6)).clamp(max=1.0)
        update_scaled(self._optimizer, gradients, self._summed / clip, found_inf, takes_scale=self._facts.takes_scale)
        for master in self._masters:
            master.values.grad = None

    @abstractmethod
    def _measure_norm(self, gradients: list[torch.Tensor]) -> torch.Tensor:
        """Of the step's summed gradient, over all ranks: fp32, a scalar on the device."""

    @property
    def skipped(self) -> bool:
        return self._flags.read()

    def gradient_norm(self) -> float:
        norm = float(self._norm)
        return norm if math.isfinite(norm) else math.inf

    def _locate(self, fragment: Fragment) -> Place:
        master = self._by_name[fragment.name]
        return Place(master.values, fragment.offset - master.offset)

    def replicas(self) -> list[torch.Tensor]:
        return []

    def counters(self, step: int) -> Counters:
        applied = self._count_updates()
        return {"optimizer_step": applied, "skipped_steps": step - applied, "loss_scaler": None}

    def set_counters(self, step: int, counters: Counters) -> None:
        self.skipped_steps = step - counters["optimizer_step"]
        self._set_update_count(counters["optimizer_step"])


class _Flags:
    """One number of each step on its way from the device to the host, who waits for it only when it reads it."""

    def __init__(self, device: torch.device):
        self._event = torch.cuda.Event() if device.type == "cuda" else None
        self._value = torch.zeros((), pin_memory=self._event is not None)

    def send(self, value: torch.Tensor) -> None:
        self._value.copy_(value, non_blocking=True)
        if self._event is not None:
            self._event.record()

    def read(self) -> bool:
        if self._event is not None:
            self._event.synchronize()
        return bool(self._value)
