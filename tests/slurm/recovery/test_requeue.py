"""When a run goes on by itself, and when it stops for people: a table of histories."""

import pytest

from slurm.recovery.cause import Cause
from slurm.recovery.history import Outcome
from slurm.recovery.requeue import MAX_FAILURES, MAX_INTERRUPTIONS, decide_next, find_bad_nodes
from store.run.end import End

CRASH = Cause("program", "rank 0 on node1 failed in step 1: ValueError: no", 0, "node1")
KILLED = Cause("killed", "rank 3 on node2 was killed from outside in step 7", 3, "node2")
NODE_LOST = Cause("node lost", "node node2 was lost", host="node2")
SILENT = Cause("unresponsive", "no rank made progress for 612 s: rank 3 on node2 does not answer", 3, "node2")
HUNG = Cause("hung", "no rank made progress for 612 s: rank 0 on node1 has been waiting for samples", 0, "node1")
MISTAKE = Cause("data", "rank 1 on node1 stopped: /x.png: does not decode", 1, "node1", is_user_error=True)
FINISHED = End("finished", 100, "step-00000100-a0001")
PREEMPTED = End("notice", 40, "step-00000040-a0001", "SIGTERM")
ASKED = End("notice", 40, "step-00000040-a0001", "stop asked for by Ada")


def history(*ended: End | Cause | tuple[Cause, str]) -> list[Outcome]:
    """Attempts 1, 2, …; a cause in a tuple had committed a checkpoint before."""
    found = []
    for number, one in enumerate(ended, 1):
        end, cause = (one, None) if isinstance(one, End) else (None, one[0] if isinstance(one, tuple) else one)
        found.append(Outcome(number, end, isinstance(one, tuple) or end is not None, cause))
    return found


SAVED = (CRASH, "saved")


@pytest.mark.parametrize(
    ("ended", "action", "reason"),
    [
        ([], "requeue", "first attempt"),
        ([FINISHED], "complete", "finished at step 100"),
        ([PREEMPTED], "requeue", "stopped after step 40 on SIGTERM"),
        ([PREEMPTED] * 50, "requeue", "stopped after step 40 on SIGTERM"),
        ([ASKED], "complete", "stopped after step 40: stop asked for by Ada"),
        ([CRASH], "requeue", f"{CRASH.sentence}; try 1 of {MAX_FAILURES} without a new checkpoint"),
        (
            [CRASH] * MAX_FAILURES,
            "hold",
            f"{MAX_FAILURES} attempts in a row ended without a new checkpoint; the last: ",
        ),
        ([SAVED] * 50, "requeue", f"{CRASH.sentence}; it had saved a new checkpoint"),
        ([CRASH, SAVED, CRASH, CRASH], "requeue", f"try 2 of {MAX_FAILURES}"),
        ([CRASH, PREEMPTED, CRASH, CRASH], "hold", f"{MAX_FAILURES} attempts"),
        ([MISTAKE], "hold", "does not decode"),
        ([NODE_LOST] * (MAX_INTERRUPTIONS - 1), "requeue", "node2 was lost"),
        ([NODE_LOST] * MAX_INTERRUPTIONS, "hold", f"{MAX_INTERRUPTIONS} attempts"),
        ([NODE_LOST, CRASH, NODE_LOST, CRASH], "requeue", f"try 2 of {MAX_FAILURES}"),
        ([SILENT] * (MAX_INTERRUPTIONS - 1), "requeue", "rank 3 on node2 does not answer"),
        ([HUNG] * MAX_FAILURES, "hold", f"{MAX_FAILURES} attempts"),
    ],
)
def test_whether_a_run_is_started_again(ended: list[End | Cause], action: str, reason: str) -> None:
    decision = decide_next(history(*ended))
    assert decision.action == action
    assert reason in decision.reason


def test_a_node_is_left_out_after_two_failures_that_may_be_its_own() -> None:
    assert find_bad_nodes(history(NODE_LOST)) == {}
    assert find_bad_nodes(history(NODE_LOST, PREEMPTED, KILLED)) == {"node2": "2 attempts failed first on node2"}
    assert find_bad_nodes(history(SILENT, SILENT)) == {"node2": "2 attempts failed first on node2"}
    assert find_bad_nodes(history(HUNG, HUNG)) == {}
    assert find_bad_nodes(history(CRASH, CRASH)) == {}, "a program that is wrong is wrong on every node"
    ecc = Cause("device", "rank 0 on node1 failed on its GPU: CUDA error: uncorrectable ECC error", 0, "node1")
    assert list(find_bad_nodes(history(ecc, ecc))) == ["node1"]
