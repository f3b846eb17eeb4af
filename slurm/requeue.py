"""Whether a run is to be started again: a pure decision, taken when an attempt ends and again when the next begins.

Twice, because after a dead node SLURM requeues the job by itself, and no script of ours has run at the end.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Literal

from slurm.history import Outcome

TRIES = 3  # attempts in a row that may end without a new checkpoint before people are asked
BAD_NODE = 2  # attempts that failed first on one node before it is left out


@dataclass(frozen=True)
class Decision:
    """What becomes of the job, and why, in words for its comment and for `lockstep status`."""

    action: Literal["go on", "hold", "done"]
    reason: str


def decide(history: list[Outcome]) -> Decision:
    """After these attempts, oldest first."""
    if not history:
        return Decision("go on", "first attempt")
    last = history[-1]
    if last.end is not None and last.end.reason == "finished":
        return Decision("done", f"trained to step {last.end.step}")
    if last.end is not None and last.end.asked_by_people:
        return Decision("done", f"stopped after step {last.end.step}: {last.end.notice}")
    if last.end is not None:
        return Decision("go on", f"stopped after step {last.end.step} on {last.end.notice}")
    if last.mistake:
        return Decision("hold", f"attempt {last.attempt}: {last.cause}")
    cause = last.cause or (f"node {last.host} was lost" if last.host else "lost, cause unknown")
    if last.progressed:
        return Decision("go on", f"attempt {last.attempt} failed after a new checkpoint: {cause}")
    fruitless = _fruitless(history)
    if fruitless >= TRIES:
        return Decision("hold", f"{fruitless} attempts in a row ended without a new checkpoint; the last: {cause}")
    return Decision(
        "go on", f"attempt {last.attempt} failed, try {fruitless} of {TRIES} without a new checkpoint: {cause}"
    )


def bad_nodes(history: list[Outcome]) -> dict[str, str]:
    """Nodes to leave out of the next attempt, and why."""
    failed = Counter(outcome.host for outcome in history if outcome.end is None and outcome.host)
    return {host: f"{count} attempts failed first on {host}" for host, count in failed.items() if count >= BAD_NODE}


def _fruitless(history: list[Outcome]) -> int:
    """Failures at the end of the history without a new checkpoint; a stop on notice neither counts nor ends the row."""
    count = 0
    for outcome in reversed(history):
        if outcome.end is not None:
            continue
        if outcome.progressed:
            break
        count += 1
    return count
