"""A save takes no memory that was not there before the first step, the first one as little as any other."""

import json
from pathlib import Path

from tests.ranks import run_ranks

PROGRAM = Path(__file__).with_name("watch_saves.py")


def test_a_save_allocates_nothing(tmp_path: Path) -> None:
    printed = run_ranks(1, PROGRAM, tmp_path / "run").splitlines()
    saves = [json.loads(line) for line in printed if line.startswith('{"size"')]
    assert len(saves) == 4
    for save in saves:
        assert save["size"] == 16 * (2 * 2048 * 2048 + 2 * 2048), "weights, two moments and the average, in fp32"
        assert save["peak"] - save["before"] < 0.02 * save["size"]
        assert save["largest"] < 1 << 10, "what delays the next step makes no tensor of any size"
