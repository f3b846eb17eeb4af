"""The learning rate as a pure function of the step."""

import pytest

from configs.schema import RunConfig
from configs.solve.learning_rate import compute_learning_rate


def rates(total: int, **keys: object) -> list[float]:
    """The rates of steps 1 … total."""
    config = RunConfig.model_validate({"name": "a", "model": "m", "data": {"images": "i"}, "lr": 1.0, **keys})
    return [compute_learning_rate(config, step, total) for step in range(1, total + 1)]


def test_warm_up_rises_evenly_and_reaches_lr_at_its_last_step() -> None:
    assert rates(6, warmup_steps=4) == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_without_warm_up_the_first_step_has_the_whole_rate() -> None:
    assert rates(3) == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("lr_schedule", ["linear", "cosine"])
def test_decay_falls_all_the_way_and_the_last_step_still_learns(lr_schedule: str) -> None:
    found = rates(100, lr_schedule=lr_schedule, warmup_steps=10)
    assert found[9] == 1.0
    after = found[9:]
    assert after == sorted(after, reverse=True)
    assert 0 < found[-1] < 0.02


def test_known_values() -> None:
    assert rates(3, lr_schedule="linear") == pytest.approx([0.75, 0.5, 0.25])
    assert rates(3, lr_schedule="cosine") == pytest.approx([0.853553, 0.5, 0.146447], rel=1e-5)


def test_a_warm_up_longer_than_the_run_ends_on_its_way() -> None:
    assert rates(2, lr_schedule="cosine", warmup_steps=4) == [0.25, 0.5]
