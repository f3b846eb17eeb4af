import numpy as np
import pytest

from train.data.permutation import permute_indices
from train.data.randomness import Purpose


def permute(places: np.ndarray, n: int, seed: int, epoch: int) -> np.ndarray:
    return permute_indices(places, n, seed, Purpose.ORDER, (epoch,))


def order(n: int, seed: int = 0, epoch: int = 0) -> list[int]:
    return permute(np.arange(n, dtype=np.uint64), n, seed, epoch).tolist()


@pytest.mark.parametrize("n", [1, 2, 3, 5, 16, 100, 1000, 1023, 65_537])
def test_an_epoch_holds_each_sample_exactly_once(n):
    assert sorted(order(n)) == list(range(n))


def test_golden_orders():
    """These numbers are a promise: another order would be another run."""
    assert order(10) == [3, 9, 4, 0, 8, 5, 1, 7, 6, 2]
    assert order(1000, seed=2**63, epoch=7)[:8] == [814, 737, 609, 544, 323, 857, 431, 251]


@pytest.mark.parametrize("n", [1, 2, 33, 1000, 10**6, 6 * 10**9, 2**63])
def test_few_positions_and_many_are_permuted_alike(n):
    """Few go through plain integers, many through NumPy."""
    places = np.unique(np.linspace(0, n - 1, 200).astype(np.uint64).clip(0, n - 1))
    together = permute(np.resize(places, max(len(places), 64)), n, 3, 1)[: len(places)]
    alone = [int(permute(np.array([place]), n, 3, 1)[0]) for place in places]
    assert together.tolist() == alone


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = {tuple(order(50, seed, epoch)) for seed in (0, 1, 2**32, 2**63) for epoch in range(20)}
    assert len(orders) == 80


def test_a_place_of_six_billion_is_computed_alone():
    n = 6_000_000_000
    places = np.array([0, 1, n - 1], np.uint64)
    there = permute(places, n, 3, 1)
    assert len(set(there.tolist())) == 3
    assert there.max() < n
    assert permute(places[1:2], n, 3, 1)[0] == there[1]


def test_every_sample_is_equally_likely_at_every_place():
    """Chi-square of (place, sample) over 4,000 epochs of 12 samples: 121 degrees of freedom, 4 sigma is 183."""
    n, epochs = 12, 4000
    counts = np.zeros((n, n))
    for epoch in range(epochs):
        counts[np.arange(n), order(n, 5, epoch)] += 1
    expected = epochs / n
    assert ((counts - expected) ** 2 / expected).sum() * (n - 1) / n < 183


def test_neighbours_do_not_stay_neighbours():
    places = np.array(order(10_000))
    assert abs(np.corrcoef(places[:-1], places[1:])[0, 1]) < 0.04
