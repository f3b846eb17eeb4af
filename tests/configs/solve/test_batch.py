"""Contract 1: the batch is exact on every shape, and what does not divide is refused with what does."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.errors import UserError
from configs.scalars import NodeRange
from configs.schema import DataConfig, RunConfig
from configs.solve.batch import BatchPlan, Shape, list_batch_plans, solve_batch


def config(**keys: object) -> RunConfig:
    return RunConfig.model_validate({"name": "a", "model": "m", "data": {"images": "i"}, **keys})


def cluster(nodes: str, gpus: int) -> dict[str, object]:
    return {"nodes": NodeRange.parse(nodes), "gpus_per_node": gpus}


def test_the_seed_example() -> None:
    assert solve_batch(config(batch=800, micro_batch=100)).accumulation == 8


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"batch": 64}, (1, 1, 64, 1)),
        ({"micro_batch": 4}, (1, 1, 4, 1)),
        ({"batch": 64, "gradient_accumulation_steps": 4}, (1, 1, 16, 4)),
        ({"micro_batch": 4, "gradient_accumulation_steps": 4, "cluster": cluster("2", 2)}, (2, 2, 4, 4)),
        ({"batch": 64, "micro_batch": 4, "gradient_accumulation_steps": 4}, (1, 4, 4, 4)),
        (
            {"batch": 64, "micro_batch": 4, "gradient_accumulation_steps": 4, "cluster": {"gpus_per_node": 2}},
            (2, 2, 4, 4),
        ),
        ({"batch": 256, "micro_batch": 8, "cluster": cluster("2-8", 4)}, (2, 4, 8, 4)),
        ({"batch": 12, "micro_batch": 8, "cluster": cluster("5-8", 1)}, (6, 1, 2, 1)),
        ({}, (1, 1, 1, 1)),
    ],
)
def test_any_set_that_determines_the_rest(keys: dict[str, object], expected: tuple[int, int, int, int]) -> None:
    plan = solve_batch(config(**keys))
    assert (plan.shape.nodes, plan.shape.gpus_per_node, plan.micro_batch, plan.accumulation) == expected


@settings(deadline=None)  # the machine may be busy
@given(st.integers(1, 2000), st.integers(1, 64), st.integers(1, 8), st.integers(1, 8))
def test_a_solved_batch_is_exact_and_a_refusal_names_what_divides(
    batch: int, micro: int, nodes: int, gpus: int
) -> None:
    wanted = config(batch=batch, micro_batch=micro, cluster=cluster(str(nodes), gpus))
    world = nodes * gpus
    if batch % (world * micro) == 0:
        plan = solve_batch(wanted)
        assert plan.micro_batch * plan.accumulation * world == plan.batch == batch
        assert plan.micro_batch == micro
        return
    with pytest.raises(UserError, match=f"batch {batch} ") as error:
        solve_batch(wanted)
    named = re.search(r"nearest batches that do: (\d+)(?: and (\d+))?", str(error.value))
    assert named
    for number in map(int, filter(None, named.groups())):
        assert abs(number - batch) < world * micro
        assert solve_batch(config(batch=number, micro_batch=micro, cluster=cluster(str(nodes), gpus))).batch == number


@settings(deadline=None)  # the machine may be busy
@given(st.integers(1, 2000), st.integers(1, 64), st.integers(1, 4), st.integers(0, 8), st.integers(1, 8))
def test_on_a_node_range_the_micro_batch_is_a_ceiling(batch: int, micro: int, low: int, more: int, gpus: int) -> None:
    wanted = config(batch=batch, micro_batch=micro, cluster=cluster(f"{low}-{low + more + 1}", gpus))
    fits = [nodes for nodes in range(low, low + more + 2) if batch % (nodes * gpus) == 0]
    if not fits:
        with pytest.raises(UserError, match="no node count in the range divides it"):
            solve_batch(wanted)
        return
    plan = solve_batch(wanted)
    assert plan.shape.nodes == fits[0]
    assert plan.batch == batch
    assert plan.micro_batch <= micro


@settings(deadline=None)  # the machine may be busy
@given(st.integers(1, 500), st.integers(1, 8))
def test_every_split_is_listed_once(batch: int, world: int) -> None:
    shape = Shape(1, world)
    expected = {
        (micro, rounds)
        for micro in range(1, batch + 1)
        for rounds in [batch // (micro * world)]
        if micro * rounds * world == batch
    }
    found = list_batch_plans(DataConfig(images="x"), batch, shape)
    assert {(plan.micro_batch, plan.accumulation) for plan in found} == expected
    assert len(found) == len(expected)
    assert found == sorted(found, key=lambda plan: -plan.micro_batch)


def test_refusals_carry_the_numbers_and_the_cure() -> None:
    with pytest.raises(UserError) as error:
        solve_batch(config(batch=100, cluster=cluster("3", 4)))
    assert str(error.value) == (
        "batch 100 cannot be shared equally by 12 ranks (3×4): 100 / 12 is not whole; "
        "nearest batches that do: 96 and 108; node counts that do: 1, 5"
    )
    with pytest.raises(UserError, match=r"micro-batches that do: 25 and 50; nearest batches that do: 90 and 120"):
        solve_batch(config(batch=100, micro_batch=30))
    with pytest.raises(UserError, match=r"leave gradient_accumulation_steps out to get 4"):
        solve_batch(config(batch=64, micro_batch=16, gradient_accumulation_steps=3, cluster=cluster("1", 1)))
    with pytest.raises(UserError, match=r"gradient_accumulation_steps that do: 5 and 10"):
        solve_batch(config(batch=100, gradient_accumulation_steps=7))


def test_a_shape_asked_for_wins_over_the_config() -> None:
    wanted = config(batch=256, micro_batch=8, cluster=cluster("2-8", 4))
    assert solve_batch(wanted, Shape(4, 4)) == BatchPlan(Shape(4, 4), 8, 2)


BUCKETS: dict[str, object] = {"images": "i", "buckets": {}}


@settings(deadline=None)  # the machine may be busy
@given(st.integers(1, 2000), st.integers(1, 64), st.integers(1, 8), st.integers(1, 40) | st.none())
def test_with_buckets_a_micro_batch_divides_the_grain(batch: int, micro: int, world: int, grain: int | None) -> None:
    """What is refused names what is allowed, and what is solved never mixes two sizes."""
    data = {"images": "i", "buckets": {"grain": grain}}
    stated = grain or max(n for n in range(1, 33) if batch % n == 0)
    wanted = config(batch=batch, micro_batch=micro, data=data, cluster=cluster("1", world))
    whole = batch % (world * micro) == 0
    if whole and stated % micro == 0:
        assert solve_batch(wanted).micro_batch == micro
        return
    with pytest.raises(UserError) as error:
        solve_batch(wanted)
    named = re.search(r"micro-batches that do: (\d+)(?:(?:,| and) (\d+))*", str(error.value))
    assert named or batch % world
    for number in map(int, filter(None, named.groups() if named else ())):
        solved = solve_batch(config(batch=batch, micro_batch=number, data=data, cluster=cluster("1", world)))
        assert stated % solved.micro_batch == 0


def test_without_a_micro_batch_buckets_take_the_largest_that_the_grain_allows() -> None:
    assert solve_batch(config(batch=192, data=BUCKETS)) == BatchPlan(Shape(1, 1), 32, 6)
    assert solve_batch(config(batch=192, micro_batch=24, data=BUCKETS, cluster=cluster("1-4", 1))).micro_batch == 16
    plans = list_batch_plans(config(data=BUCKETS).data, 192, Shape(1, 4))
    assert [plan.micro_batch for plan in plans] == [16, 8, 4, 2, 1]


def test_a_micro_batch_of_two_sizes_is_refused_with_those_that_have_one() -> None:
    with pytest.raises(UserError) as error:
        solve_batch(config(batch=192, micro_batch=24, data=BUCKETS, cluster=cluster("1", 1)))
    assert str(error.value) == (
        "micro_batch 24 does not divide the grain of 32 samples that are of one size (data.buckets.grain; null is the "
        "largest divisor of batch 192 up to 32); micro-batches that do: 1, 2, 4, 8, 16, 32; or write a grain that 24 "
        "divides"
    )
    with pytest.raises(UserError, match=r"the micro-batch of 64 that gradient_accumulation_steps 3 makes"):
        solve_batch(config(batch=192, gradient_accumulation_steps=3, data=BUCKETS, cluster=cluster("1", 1)))
    with pytest.raises(UserError, match=r"micro_batch 40 does not divide the grain of 20 .* do: 1, 2, 4, 5, 10, 20;"):
        solve_batch(config(micro_batch=40, data=BUCKETS))
    assert solve_batch(config(micro_batch=40, data=BUCKETS | {"buckets": {"grain": 80}})).batch == 40
