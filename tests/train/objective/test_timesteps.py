"""Timesteps: how often each is drawn, and that a batch covers them evenly whatever shape cuts it."""

from functools import partial
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.schema import RunConfig
from configs.solve.batch import BatchPlan, Shape
from tests.train.objective.test_objective import T, objective
from train.data.randomness import Purpose, draw_uniform
from train.data.strata import draw_stratified
from train.data.stream import list_positions
from train.objective.timesteps import pick_logit_normally, pick_uniformly

ALMOST_1 = float(np.nextafter(1, 0))


def test_a_uniform_number_is_spread_over_all_timesteps() -> None:
    picked = [pick_uniformly(u, 0, 9) for u in np.arange(0, 1, 0.001)]
    assert np.bincount(picked).tolist() == [100] * 10
    assert pick_uniformly(0.0, 0, T - 1) == 0
    assert pick_uniformly(ALMOST_1, 0, T - 1) == T - 1


def test_the_default_is_what_it_was() -> None:
    """⌊u T⌋: a run that was begun before there was a range goes on with the same timesteps."""
    timestep = objective("epsilon").timestep
    assert isinstance(timestep, partial), "goes to worker processes, so it holds no scheduler and no weights"
    for u in np.random.default_rng(0).random(1000):
        assert timestep(u) == int(u * T)


def test_a_range_is_covered_to_both_ends_and_not_beyond() -> None:
    timestep = objective("epsilon", timesteps={"first": 200, "last": 299}).timestep
    assert np.bincount([timestep(u) for u in np.arange(0.0005, 1, 0.001)])[200:].tolist() == [10] * 100
    assert (timestep(0.0), timestep(ALMOST_1)) == (200, 299)
    alone = objective("epsilon", timesteps={"first": 7, "last": 7}).timestep
    assert {alone(0.0), alone(0.5), alone(ALMOST_1)} == {7}


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (-0.8, 0.5), (1.5, 2.0)])
@pytest.mark.parametrize(("first", "last"), [(0, 999), (100, 349)])
def test_logit_normal_timesteps_have_esser_s_distribution(mean: float, std: float, first: int, last: int) -> None:
    """P(t < s) = Φ((logit((s − first) / n) − mean) / std), at each timestep s; exactly, since a grid of u is drawn."""
    settings = {"distribution": "logit_normal", "mean": mean, "std": std, "first": first, "last": last}
    timestep = objective("epsilon", timesteps=settings).timestep
    grid = (np.arange(20_000) + 0.5) / 20_000
    picked = np.array([timestep(float(u)) for u in grid])
    assert first <= picked.min() <= picked.max() <= last
    n = last - first + 1
    for s in range(first + 1, last + 1, 13):
        share = (s - first) / n
        expected = NormalDist(mean, std).cdf(np.log(share / (1 - share)))
        assert abs((picked < s).mean() - expected) <= 1 / 20_000, s


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (800.0, 1.0), (-800.0, 1.0), (0.0, 1e300), (1e308, 1e308)])
@pytest.mark.parametrize("u", [0.0, 5e-324, 2**-53, 0.5, ALMOST_1])
def test_the_ends_of_logit_normal_stay_in_the_range(u: float, mean: float, std: float) -> None:
    assert 3 <= pick_logit_normally(u, 3, 9, mean, std) <= 9


SHAPES = st.tuples(st.integers(1, 9), st.integers(1, 5), st.integers(1, 7))


@settings(max_examples=60, deadline=None)
@given(SHAPES, st.integers(1, 10**9), st.integers(0, 2**64 - 1))
def test_a_batch_has_one_timestep_in_each_stratum_on_any_shape(
    shape: tuple[int, int, int], step: int, seed: int
) -> None:
    """Micro-batch × accumulation × ranks, each rank drawing for its own micro-batches; the same values as alone."""
    micro, accumulation, ranks = shape
    plan = BatchPlan(Shape(ranks, 1), micro, accumulation)
    drawn: dict[int, float] = {}
    for rank in range(ranks):
        for positions in list_positions(plan, rank, step):
            drawn |= dict(zip(positions, draw_stratified(seed, positions, plan.batch), strict=True))
    assert sorted(drawn) == list(range((step - 1) * plan.batch, step * plan.batch))
    assert sorted(int(u * plan.batch) for u in drawn.values()) == list(range(plan.batch))
    some = sorted(drawn)[len(drawn) // 2]
    assert draw_stratified(seed, [some], plan.batch) == [drawn[some]]


@given(st.integers(1, 4096), st.sampled_from([0.0, 0.5, ALMOST_1]), st.data())
@settings(max_examples=60, deadline=None)
def test_a_number_stays_in_its_stratum_at_its_ends(batch: int, u: float, data: st.DataObject) -> None:
    """Rounding would take the last number of a stratum into the next one, and that of the last one to 1."""
    place = data.draw(st.integers(0, batch - 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("train.data.strata.draw_uniform", lambda *_: u)
        patch.setattr("train.data.strata.permute_indices", lambda places, *_: places)
        [number] = draw_stratified(0, [7 * batch + place], batch)
    assert place / batch <= number < (place + 1) / batch


def test_strata_are_dealt_anew_in_each_step_and_for_each_seed() -> None:
    """Samples of one bucket stand side by side, so their timesteps must not."""
    batch = 64
    strata = {
        (seed, step): tuple(
            int(u * batch) for u in draw_stratified(seed, range(step * batch, (step + 1) * batch), batch)
        )
        for seed in (0, 1)
        for step in range(50)
    }
    assert len(set(strata.values())) == len(strata)
    by_grain = np.array([strata[0, step] for step in range(50)]).reshape(50, 4, 16)
    assert abs(by_grain.mean(axis=(0, 2)) - 31.5).max() < 3, "no grain has a part of the timesteps for itself"
    assert by_grain.std(axis=2).mean() > 16, "and each spreads over them (18.5 if drawn at random)"


def test_a_batch_of_one_is_drawn_as_it_would_be_alone() -> None:
    assert draw_stratified(3, range(5), 1) == [draw_uniform(3, Purpose.TIMESTEP, position) for position in range(5)]


def test_a_batch_covers_any_distribution_and_range() -> None:
    """As many timesteps below its median as above, in every batch."""
    config = RunConfig(name="o", model="m", data={"images": "-"}, seed=4, batch=32)
    changes = {"distribution": "logit_normal", "mean": 1.0, "first": 100, "last": 899}
    timestep = objective("epsilon", timesteps=changes).timestep
    median = timestep(0.5)
    for step in range(5):
        numbers = draw_stratified(config.seed, range(step * 32, step * 32 + 32), 32)
        picked = [timestep(u) for u in numbers]
        assert sum(t < median for t in picked) == pytest.approx(16, abs=1)
