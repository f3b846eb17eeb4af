"""When a checkpoint is due and which ones may go."""

from hypothesis import given, settings
from hypothesis import strategies as st

from configs.schema import CheckpointConfig
from store.checkpoint.retention import should_save, steps_to_prune

steps = st.lists(st.integers(1, 1000), unique=True, max_size=30)


def test_steps_or_minutes_whichever_comes_first() -> None:
    both = CheckpointConfig(every_steps=100, every_minutes=30)
    assert should_save(both, 200, 0.0)
    assert not should_save(both, 201, 1799.9)
    assert should_save(both, 201, 1800.0)
    assert not should_save(CheckpointConfig(every_steps=None), 500, 1e9)


def test_the_last_k_and_every_nth_are_kept() -> None:
    policy = CheckpointConfig(keep=2, keep_every=300)
    assert steps_to_prune(policy, [100, 200, 300, 400, 500, 600, 700]) == [100, 200, 400, 500]
    assert steps_to_prune(policy, [100, 200]) == []
    assert steps_to_prune(policy, []) == []


@settings(deadline=None)  # the machine may be busy
@given(steps, st.integers(1, 5), st.none() | st.integers(1, 50))
def test_the_newest_always_stays_and_pruning_twice_changes_nothing(
    there: list[int], keep: int, every: int | None
) -> None:
    policy = CheckpointConfig(keep=keep, keep_every=every)
    gone = steps_to_prune(policy, there)
    left = [step for step in there if step not in gone]
    assert len(left) >= min(keep, len(there))
    assert sorted(there)[-keep:] == sorted(left)[-keep:]
    assert steps_to_prune(policy, left) == []
