"""Steps whose gradient was not finite: every rank skips them; a reporter counts and names them; too many end the run.

In fp16 a step is skipped now and then, until the loss scale fits. Anywhere else a sample, a GPU or the learning rate is
broken.
"""

import math

from configs.errors import LockstepError
from train.data.stream import Stream
from train.engines.base import Engine
from train.process_group import World
from train.step import StepResult
from train.step_totals import StepTotals

LIMIT = 20  # skipped steps in a row that end the run
SHOWN = 4  # micro-batches named in one line


class NonFinite(LockstepError):
    """What training computes is not finite any more, so that going on would only lose time."""


class SkippedSteps:
    """A reporter of the run's skipped steps, of which `total` so far, in earlier attempts, too."""

    def __init__(self, world: World, engine: Engine, stream: Stream, total: int):
        self.world, self.engine, self.stream, self.total = world, engine, stream, total
        self.in_a_row = 0  # up to the newest one, in this attempt
        self.newest = 0  # step

    def due(self, step: int) -> bool:
        return step > 0 and self.engine.skipped

    def report(self, step: int, totals: StepTotals) -> None:
        """Raises NonFinite where `step` is the last of LIMIT in a row."""
        assert totals.last is not None
        self.total += 1
        self.in_a_row = self.in_a_row + 1 if self.newest == step - 1 else 1
        self.newest = step
        alarm, reason = self._find_reason(totals.last)
        if self.world.is_main_process:
            print(f"{'ALARM: ' if alarm else ''}step {step} is skipped: {reason}", flush=True)
        if self.in_a_row == LIMIT:
            raise NonFinite(f"steps {step - LIMIT + 1} to {step} were skipped, {LIMIT} in a row; the last: {reason}")

    def _find_reason(self, result: StepResult) -> tuple[bool, str]:
        """Whether it is a cause for alarm, and which samples' loss or gradient it was."""
        mine = [
            positions
            for positions, loss in zip(result.positions, result.micro_losses.tolist(), strict=True)
            if not math.isfinite(loss)
        ]
        spoiled = sorted((p for part in self.world.gather(mine) for p in part), key=lambda positions: positions[0])
        if spoiled:
            return True, f"the loss is not finite at {self._name(spoiled)}"
        everything = [positions for part in self.world.gather(result.positions) for positions in part]
        span = f"positions {min(map(min, everything))}-{max(map(max, everything))}"
        if self.engine.loss_scale is not None:
            return False, f"its gradient overflowed fp16 ({span}); the loss scale is {self.engine.loss_scale:g} now"
        return True, f"its losses are finite and its gradient is not, {span}"

    def _name(self, micro_batches: list[list[int]]) -> str:
        """Positions and images of the first few micro-batches."""
        named = []
        for positions in micro_batches[:SHOWN]:
            images = ", ".join(self.stream.image_at(position) for position in positions[:SHOWN])
            more = ", …" if len(positions) > SHOWN else ""
            named.append(f"positions {positions[0]}-{positions[-1]} ({images}{more})")
        unnamed = len(micro_batches) - len(named)
        return "; ".join(named) + (f"; and {unnamed} more micro-batches" if unnamed else "")
