"""One step: micro-batches → clip → update → EMA. The learning rate, the weights and the average change here only."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from train.engines.base import Engine
from train.engines.ema import Ema
from train.models.base import DiffusionModel
from train.objective.loss import Objective


@dataclass(frozen=True)
class StepResult:
    """What a step leaves to report; tensors stay on the device until somebody asks."""

    micro_losses: torch.Tensor  # of this rank's micro-batches, fp32, (accumulation,)
    positions: list[list[int]]  # that they hold
    data_wait: float  # seconds this rank waited for samples

    @property
    def loss(self) -> torch.Tensor:
        """Mean over this rank's micro-batches, a scalar."""
        return self.micro_losses.mean()


@dataclass
class Trainer:
    """What a step works on: the engine holds the weights of the model's denoiser and their optimizer."""

    model: DiffusionModel
    objective: Objective
    engine: Engine
    ema: Ema | None
    device: torch.device

    def step(
        self,
        number: int,
        rate: float,
        micro_batches: Iterator[dict[str, torch.Tensor]],
        before_update: Callable[[], None],
    ) -> StepResult:
        """Make step `number`, counted from 1, with learning rate `rate`.

        Takes this rank's share of it from `micro_batches`. `before_update` is called when the gradient is complete, and
        returns when the weights may change.
        """
        self.engine.set_learning_rate(rate)
        micro_losses, positions, data_wait = [], [], 0.0
        for remaining in reversed(range(self.engine.accumulation)):
            began = time.perf_counter()
            micro_batch = next(micro_batches)
            data_wait += time.perf_counter() - began
            micro_loss = self.micro_loss(micro_batch)
            self.engine.backward(micro_loss)
            if remaining == 0:
                before_update()
            self.engine.step()  # clips and updates after the last micro-batch
            micro_losses.append(micro_loss.detach())
            positions.append(micro_batch["position"].tolist())
        if self.ema is not None:
            self.ema.update(number)
        return StepResult(torch.stack(micro_losses), positions, data_wait)

    def micro_loss(self, micro_batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """The objective of one micro-batch, a scalar with its graph."""
        batch = {key: value.to(self.device, non_blocking=True) for key, value in micro_batch.items()}
        x_0 = self.model.latents(batch)
        condition = self.model.condition(batch)
        return self.objective.loss(self.engine, x_0, batch, condition)
