"""How long a run is: steps, epochs or samples as the user wrote them, converted with one formula."""

import math
from dataclasses import dataclass
from fractions import Fraction

from configs.errors import UserError
from configs.schema import RunConfig


@dataclass(frozen=True)
class Length:
    """The run's length at one batch; `dataset` samples make one epoch (None: not known yet)."""

    steps: int
    batch: int
    dataset: int | None

    @property
    def samples(self) -> int:
        """Samples consumed by the whole run."""
        return self.steps * self.batch

    @property
    def steps_per_epoch(self) -> Fraction | None:
        """Exactly, for a batch may cross an epoch's boundary; None where the dataset's size is not known."""
        return Fraction(self.dataset, self.batch) if self.dataset else None

    def epochs_after(self, step: int) -> float | None:
        """Passes over the dataset done after `step` steps."""
        return step * self.batch / self.dataset if self.dataset else None


def solve_length(config: RunConfig, batch: int, dataset: int | None) -> Length:
    """`epochs: E` are ceil(E·N / batch) steps: the last batch may reach into the next epoch, nothing is dropped."""
    if dataset == 0:
        raise UserError(f"{config.data.images}: the dataset is empty; put images and their captions there")
    if config.steps is not None:
        return Length(config.steps, batch, dataset)
    if config.samples is not None:
        return Length(math.ceil(config.samples / batch), batch, dataset)
    if dataset is None:
        raise UserError("a length in epochs needs the dataset's size; pass --samples N, or write steps or samples")
    epochs = Fraction(str(config.epochs if config.epochs is not None else 1))
    return Length(math.ceil(epochs * dataset / batch), batch, dataset)
