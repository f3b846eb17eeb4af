"""Our step asks torch for no more than the bare loop of its library does: counts, so that no busy machine matters."""

import json
from pathlib import Path

import pytest
import torch

from bench.counters import count_allocations, count_step
from tests.engines import SETTINGS
from tests.ranks import run_ranks

PROGRAM = Path(__file__).with_name("count_steps.py")
# Operators of ours in a step of two micro-batches beyond the bare loop's: EMA is one, the verdict whether the gradient
# is finite and the factor that clips are the others of torch's engines.
OPERATORS = 10
READS = 1  # that verdict
COPIED_BYTES = 64  # what is reported: losses, the verdict


@pytest.fixture(scope="module")
def counted() -> dict[str, tuple[dict[str, int], dict[str, int]]]:
    rows = [json.loads(line) for line in run_ranks(1, PROGRAM).splitlines() if line.startswith('["')]
    return {name: (ours, bare) for name, ours, bare in rows}


@pytest.mark.parametrize("name", SETTINGS)
def test_our_step_asks_for_what_the_bare_loop_asks_for(counted, name):
    ours, bare = counted[name]
    assert bare["operators"] > 1000, "a whole step was counted"
    assert ours["operators"] <= bare["operators"] + OPERATORS
    assert ours["reads"] <= bare["reads"] + READS
    assert ours["copied_bytes"] <= bare["copied_bytes"] + COPIED_BYTES


def test_torch_s_engines_ask_for_less_than_deepspeed(counted):
    operators = {name: ours["operators"] for name, (ours, _) in counted.items()}
    assert operators["zero0"] < operators["keep"] < operators["zero1"]
    assert operators["reshard"] < operators["zero3"]


def test_operators_reads_and_copies_are_counted_in_passes_forward_and_backward():
    x = torch.ones(4, requires_grad=True)

    def step() -> None:
        y = x.clone()  # 16 bytes
        loss = (y * y).sum()
        loss.backward()
        loss.item()

    counts = count_step(step)
    assert (counts.reads, counts.copied_bytes) == (1, 16)
    assert counts.operators >= 6, "three of the forward pass, and those of the backward pass"


def test_allocations_are_counted():
    found = count_allocations(lambda: [torch.ones(1024) for _ in range(3)])
    assert found["allocations"] == 3
    assert 3 * 4096 <= found["allocated_bytes"] < 4 * 4096
