"""What the loop adds up for its reporters, on a clock of the test's own."""

import pytest
import torch

from train import step_totals
from train.step import StepResult
from train.step_totals import StepTotals


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """One element: the time, in seconds."""
    now = [100.0]
    monkeypatch.setattr(step_totals.time, "perf_counter", lambda: now[0])
    return now


def result(data_wait: float) -> StepResult:
    return StepResult(torch.tensor([0.5]), [[0]], data_wait)


def test_time_spent_in_reporters_is_no_training_time(clock: list[float]) -> None:
    totals = StepTotals(torch.device("cpu"))
    for _ in range(2):
        clock[0] += 3  # a step
        totals.add(result(1.0), 1e-4)
        with totals.paused():
            clock[0] += 60  # pictures
        with totals.paused():
            clock[0] += 7  # metrics
    clock[0] += 2  # a checkpoint's boundary belongs to training
    with totals.paused():
        assert (totals.steps, totals.seconds, totals.data_wait) == (2, 3 + 3 + 2, 2.0)


def test_a_reporter_sees_the_time_up_to_its_own_beginning(clock: list[float]) -> None:
    totals = StepTotals(torch.device("cpu"))
    clock[0] += 3
    with totals.paused():
        clock[0] += 5
        assert totals.seconds == 3
