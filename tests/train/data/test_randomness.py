import numpy as np

from train.data.randomness import Purpose, draw_normal, draw_uniform


def test_golden_values():
    """These numbers are a promise: other draws would be another run."""
    assert draw_normal(0, Purpose.NOISE, 0, (3,)).tolist() == [
        -1.0101170539855957,
        0.8902162313461304,
        1.798369288444519,
    ]
    assert draw_uniform(2**64 - 1, Purpose.TIMESTEP, 10**12) == 0.04955980258146819


def test_noise_is_fp32_and_standard_normal():
    noise = draw_normal(1, Purpose.NOISE, 5, (4, 64, 64))
    assert noise.dtype == np.float32
    assert abs(noise.mean()) < 0.03
    assert abs(noise.std() - 1) < 0.03


def test_seed_purpose_and_position_each_give_other_draws():
    draws = [
        draw_normal(seed, purpose, position, (8,)).tobytes()
        for seed in (0, 1, 2**32, 2**32 + 1, 2**63)  # seeds 2³² apart are the same to torch's CPU generator
        for purpose in (Purpose.NOISE, Purpose.POSTERIOR)
        for position in (0, 1, 2**32, 2**40)
    ]
    assert len(set(draws)) == len(draws)


def test_neighbouring_positions_share_no_draws():
    """A position's draws must not run into the next one's: its counter has a word of its own."""
    long = [draw_normal(0, Purpose.NOISE, position, (20_000,)) for position in (7, 8)]
    assert not set(long[0].tolist()) >= set(long[1][:50].tolist())
