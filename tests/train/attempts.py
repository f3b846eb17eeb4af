"""Whole attempts on real ranks, with a fault (see faulty_attempt.py) or without."""

import json
from pathlib import Path

from store.run.run_dir import RunDir
from tests.ranks import start_ranks
from tests.runs import next_attempt

PROGRAM = Path(__file__).with_name("faulty_attempt.py")
# Where every second step is saved: that of step 4, or on a slow disk a later one.
KILL_IN_SECOND_SAVE = {"rank": 1, "call": "open", "on": "step-0000000[3-9].*fragments-", "when": "before", "do": "kill"}
KILL_IN_SECOND_SAVE |= {"count": 1}


def make_attempt(run: RunDir, ranks: int, fault: dict[str, object] | None = None) -> list[int]:
    """The next one of `run`; its ranks' exit codes, which without a fault must all be 0."""
    world = start_ranks(ranks, PROGRAM, run.path, next_attempt(run, ranks).number, json.dumps(fault or {}))
    codes = world.wait()
    assert fault or codes == [0] * ranks, world.said()[-3000:]
    return codes
