"""Gradients are summed in fp32 and divided there, once: no world size and no accumulation rounds them in 16 bits."""

import json
from pathlib import Path

import pytest

from tests.engines import SETTINGS, SIXTEEN_BITS
from tests.ranks import run_ranks

PROGRAM = Path(__file__).with_name("train_reduction.py")
FP32 = [(name, "fp32", False) for name in SETTINGS]
BF16 = [(name, "bf16", False) for name in SIXTEEN_BITS]
FP16 = [(f"zero{stage}", "fp16", False) for stage in (1, 2, 3)]
OFFLOAD = [("zero2", "fp32", True), ("zero1", "bf16", True), ("zero2", "bf16", True), ("zero2", "fp16", True)]
OFFLOAD += [("keep", "fp32", True), ("reshard", "bf16", True)]
CASES = FP32 + BF16 + FP16 + OFFLOAD


def rows_of(printed: str) -> list[list]:
    return [json.loads(line) for line in printed.splitlines() if line.startswith("[")]


@pytest.mark.parametrize("ranks", [2, 3, 6, *(pytest.param(ranks, marks=pytest.mark.faults) for ranks in (1, 4, 5))])
def test_the_gradient_is_the_mean_of_unscaled_gradients_to_fp32_rounding(ranks):
    printed = run_ranks(ranks, PROGRAM, json.dumps(CASES))
    found = {tuple(row[:3]): row[3:] for row in rows_of(printed)}
    assert set(found) == set(CASES)
    assert {case: errors for case, errors in found.items() if max(errors) > 5e-7} == {}
