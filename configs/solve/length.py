"""How long a run is: steps, epochs or samples as the user wrote them, converted with one formula."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from configs.errors import UserError
from configs.schema import DataConfig, RunConfig


@dataclass(frozen=True)
class Length:
    """The run's length at one batch; `epoch` is the samples of one epoch (None: not known yet)."""

    steps: int
    batch: int
    epoch: int | Fraction | None

    @property
    def samples(self) -> int:
        """Samples consumed by the whole run."""
        return self.steps * self.batch

    @property
    def steps_per_epoch(self) -> Fraction | None:
        """Exactly, for a batch may cross an epoch's boundary; None where the dataset's size is not known."""
        return Fraction(self.epoch) / self.batch if self.epoch else None

    def epochs_after(self, step: int) -> float | None:
        """Passes over the dataset done after `step` steps."""
        return float(step * self.batch / self.epoch) if self.epoch else None


def count_epoch(data: DataConfig, source_sizes: Sequence[int]) -> Fraction:
    """N, the samples of one epoch: of each source its own, times its repeats. With aspect-ratio buckets an epoch has
    whole grains, and so many samples on average."""
    parts = zip(source_sizes, data.listed_sources, strict=True)
    return sum((size * source.exact_repeats for size, source in parts), Fraction(0))


def solve_length(config: RunConfig, batch: int, epoch: int | Fraction | None) -> Length:
    """`epochs: E` are ceil(E·N / batch) steps, where N is the samples of one `epoch`: the last batch may reach into the
    next one, nothing is dropped."""
    if epoch == 0:
        raise UserError(
            f"{config.data.listed_sources[0].place}: the dataset is empty; put images and their captions there"
        )
    if config.steps is not None:
        return Length(config.steps, batch, epoch)
    if config.samples is not None:
        return Length(math.ceil(config.samples / batch), batch, epoch)
    if epoch is None:
        raise UserError("a length in epochs needs the dataset's size; pass --samples N, or write steps or samples")
    epochs = Fraction(str(config.epochs if config.epochs is not None else 1))
    return Length(math.ceil(epochs * epoch / batch), batch, epoch)
