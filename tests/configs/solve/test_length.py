"""Steps, epochs and samples: one formula."""

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.errors import UserError
from configs.schema import RunConfig
from configs.solve.length import count_epoch, solve_length


def config(**keys: object) -> RunConfig:
    return RunConfig.model_validate({"name": "a", "model": "m", "data": {"images": "i"}, **keys})


def test_the_seed_example() -> None:
    assert solve_length(config(), 100, 1_000).steps_per_epoch == 10


def test_a_batch_may_cross_into_the_next_epoch() -> None:
    length = solve_length(config(epochs=20), 256, 10_000)
    assert length.steps == 782
    assert length.samples - 20 * 10_000 == 192
    assert length.steps_per_epoch == Fraction(10_000, 256)


def test_steps_and_samples() -> None:
    assert solve_length(config(steps=7), 100, None).samples == 700
    assert solve_length(config(samples=701), 100, None).steps == 8
    assert solve_length(config(), 100, 1_000).steps == 10  # one epoch where nothing is said


@settings(deadline=None)  # the machine may be busy
@given(st.integers(1, 10_000), st.integers(1, 10_000), st.sampled_from([0.1, 0.3, 0.7, 1.0, 2.5, 20.0]))
def test_epochs_take_the_fewest_steps_that_cover_them(batch: int, dataset: int, epochs: float) -> None:
    length = solve_length(config(epochs=epochs), batch, dataset)
    wanted = Fraction(str(epochs)) * dataset
    assert length.steps * batch >= wanted > (length.steps - 1) * batch


def test_an_epoch_is_every_source_as_often_as_its_repeats_say() -> None:
    data = {"sources": [{"images": "a", "repeats": 0.1}, {"images": "b", "repeats": 2}, {"images": "c"}]}
    mixed = config(data=data, epochs=3)
    epoch = count_epoch(mixed.data, [5, 100, 7])
    assert epoch == Fraction(415, 2)
    length = solve_length(mixed, 10, epoch)
    assert (length.steps, length.epochs_after(83)) == (63, 4.0)


def test_epochs_need_a_dataset() -> None:
    with pytest.raises(UserError, match="pass --samples N"):
        solve_length(config(epochs=2), 100, None)
    with pytest.raises(UserError, match="empty"):
        solve_length(config(epochs=2), 100, 0)
