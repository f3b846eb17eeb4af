"""The seam of `reporting`: what the loop asks of whatever tells how a run is doing."""

from typing import Protocol

from train.step_totals import StepTotals


class Reporter(Protocol):
    """Watches a run and never changes its trajectory; the time it takes is no training time.

    Every rank has the same reporters in the same order and asks them the same, so a report may be a collective.
    """

    def due(self, step: int) -> bool:
        """Whether to report after `step`, the same on every rank. Step 0 is the model that the run starts from."""

    def report(self, step: int, totals: StepTotals) -> None:
        """Tell of the run as it is right after `step`, on all ranks together. May raise to end the run."""
