"""What the steps of one rank have come to since the attempt began: the loop adds up, reporters take differences."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from train.step import StepResult


class StepTotals:
    """Sums over this attempt's steps, on one rank."""

    def __init__(self, device: torch.device):
        self.device = device
        self.steps = 0
        self.seconds = 0.0  # spent training, up to the newest pause
        self.data_wait = 0.0  # seconds of these that this rank waited for samples
        self.last: StepResult | None = None  # of the newest step
        self.learning_rate = 0.0  # of the newest step
        self._resumed = time.perf_counter()

    def add(self, result: StepResult, learning_rate: float) -> None:
        self.steps += 1
        self.data_wait += result.data_wait
        self.last, self.learning_rate = result, learning_rate

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time in here is not time spent training; what the device was given before still is."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds += time.perf_counter() - self._resumed
        try:
            yield
        finally:
            self._resumed = time.perf_counter()
