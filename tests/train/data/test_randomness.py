import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from train.data.randomness import Purpose, draw_normals, draw_uniform, make_generator
from train.data.strata import draw_stratified


def test_golden_values():
    """These numbers are a promise: other draws would be another run."""
    assert draw_normals(0, Purpose.NOISE, [0], (3,))[0].tolist() == [
        -1.0101170539855957,
        0.8902162313461304,
        1.798369288444519,
    ]
    assert draw_uniform(2**64 - 1, Purpose.TIMESTEP, 10**12) == 0.04955980258146819
    assert draw_stratified(2**64 - 1, [10**12, 10**12 + 1], 256) == [0.8400373429788338, 0.12161166921531234]
    offset, perturbation = (
        draw_normals(0, purpose, [0], (2,))[0].tolist()
        for purpose in (Purpose.NOISE_OFFSET, Purpose.INPUT_PERTURBATION)
    )
    assert offset == [1.563963770866394, 0.1659020632505417]
    assert perturbation == [0.40545007586479187, 0.5408554673194885]


def test_noise_is_fp32_and_standard_normal():
    noise = draw_normals(1, Purpose.NOISE, [5], (4, 64, 64))
    assert noise.dtype == np.float32
    assert abs(noise.mean()) < 0.03
    assert abs(noise.std() - 1) < 0.03


def test_seed_purpose_and_position_each_give_other_draws():
    draws = [
        draw_normals(seed, purpose, [position], (8,)).tobytes()
        for seed in (0, 1, 2**32, 2**32 + 1, 2**63)  # seeds 2³² apart are the same to torch's CPU generator
        for purpose in (Purpose.NOISE, Purpose.POSTERIOR)
        for position in (0, 1, 2**32, 2**40)
    ]
    assert len(set(draws)) == len(draws)


def test_neighbouring_positions_share_no_draws():
    """A position's draws must not run into the next one's: its counter has a word of its own."""
    long = draw_normals(0, Purpose.NOISE, [7, 8], (20_000,))
    assert not set(long[0].tolist()) >= set(long[1][:50].tolist())


@pytest.mark.parametrize(("seed", "position"), [(0, 0), (2**64 - 1, 2**63 - 1), (7, 2**40)])
def test_a_draw_is_that_of_a_generator_of_its_own(seed, position):
    """Whatever was drawn before: a number is drawn by half of what the generator makes at a time."""
    make_generator(seed, Purpose.CROP, position).integers(9, dtype=np.uint32)
    draws = [draw_uniform(seed, Purpose.FLIP, position), draw_normals(seed, Purpose.NOISE, [position, 3], (5, 7))]
    assert draws[0] == make_generator(seed, Purpose.FLIP, position).random()
    for row, at in zip(draws[1], (position, 3), strict=True):
        alone = make_generator(seed, Purpose.NOISE, at).standard_normal((5, 7), dtype=np.float32)
        assert row.tobytes() == alone.tobytes()


@pytest.fixture
def busy_threads():
    """Python goes from one thread to the next as often as it can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def test_threads_do_not_draw_from_each_other(busy_threads):
    expected = [draw_uniform(3, Purpose.FLIP, position) for position in range(4000)]
    with ThreadPoolExecutor(8) as pool:
        drawn = list(pool.map(lambda position: draw_uniform(3, Purpose.FLIP, position), range(4000)))
    assert drawn == expected
