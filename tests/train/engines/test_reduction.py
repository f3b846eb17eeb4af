"""Gradients are summed in fp32 and divided there, once: no world size and no accumulation rounds them in 16 bits."""

import json
from pathlib import Path

import pytest

from tests.ranks import run_ranks

PROGRAM = Path(__file__).with_name("train_reduction.py")
CASES = [
    (0, "fp32", False),
    (1, "fp32", False),
    (2, "fp32", False),
    (2, "fp32", True),
    (3, "fp32", False),
    (1, "bf16", False),
    (1, "bf16", True),
    (2, "bf16", False),
    (2, "bf16", True),
    (3, "bf16", False),
    (1, "fp16", False),
    (2, "fp16", False),
    (2, "fp16", True),
    (3, "fp16", False),
]


def rows_of(printed: str) -> list[list]:
    return [json.loads(line) for line in printed.splitlines() if line.startswith("[")]


@pytest.mark.parametrize("ranks", [1, 2, 3, 5, 6])
def test_the_gradient_is_the_mean_of_unscaled_gradients_to_fp32_rounding(ranks):
    printed = run_ranks(ranks, PROGRAM, json.dumps(CASES))
    found = {tuple(row[:3]): row[3:] for row in rows_of(printed)}
    assert set(found) == set(CASES)
    assert {case: errors for case, errors in found.items() if max(errors) > 5e-7} == {}
