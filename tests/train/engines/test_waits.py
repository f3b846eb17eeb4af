"""Clipping and the verdict whether a gradient is finite make nobody wait for the device: who reads it asks for it."""

import json
from pathlib import Path

import pytest

from tests.ranks import run_ranks

PROGRAM = Path(__file__).with_name("count_waits.py")


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_host_asks_for_no_number_until_skipped_is_read(ranks):
    rows = [json.loads(line) for line in run_ranks(ranks, PROGRAM).splitlines() if line.startswith("[")]
    assert rows == [[name, 0, 1] for name in ("reshard", "keep", "zero0") for _ in range(3)]
