"""Whether a run is to be started again: a pure decision, taken when an attempt ends and again when the next begins.

Twice, because after a dead node SLURM requeues the job by itself, and no script of ours has run at the end.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Literal

from slurm.recovery.cause import Cause
from slurm.recovery.history import Outcome

MAX_FAILURES = 3  # attempts in a row that may fail without a new checkpoint before people are asked
MAX_INTERRUPTIONS = 10  # the same for attempts whose machine was taken away
NODE_FAILURES_TO_EXCLUDE = 2  # attempts that failed first on one node before it is left out


@dataclass(frozen=True)
class Decision:
    """What becomes of the job, and why, in words for its comment and for `lockstep status`."""

    action: Literal["requeue", "hold", "complete"]
    reason: str


def decide_next(history: list[Outcome]) -> Decision:
    """After these attempts, oldest first."""
    if not history:
        return Decision("requeue", "first attempt")
    last = history[-1]
    if last.end is not None and last.end.reason == "finished":
        return Decision("complete", f"finished at step {last.end.step}")
    if last.end is not None and last.end.reason == "encoded":
        return Decision("complete", "all images and captions are encoded; lockstep submit trains")
    if last.end is not None and last.end.requested_by_user:
        return Decision("complete", f"stopped after step {last.end.step}: {last.end.notice}")
    if last.end is not None:
        return Decision("requeue", f"stopped after step {last.end.step} on {last.end.notice}")
    assert last.cause is not None
    sentence = last.cause.sentence
    if last.cause.is_user_error:
        return Decision("hold", sentence)
    if last.progressed:
        return Decision("requeue", f"{sentence}; it had saved a new checkpoint")
    return _decide_without_progress(_without_progress(history), last.cause)


def _decide_without_progress(row: list[Outcome], last: Cause) -> Decision:
    """After `row`, attempts in a row without a new checkpoint: what the run does wrong is tried a few times, and what
    the machine does to it more often, for it costs no more than a place in the queue."""
    failures = [outcome for outcome in row if outcome.cause and not outcome.cause.is_infrastructure]
    if len(failures) >= MAX_FAILURES or len(row) >= MAX_INTERRUPTIONS:
        reason = f"{len(row)} attempts in a row ended without a new checkpoint; the last: {last.sentence}"
        return Decision("hold", reason)
    if last.is_infrastructure:
        return Decision("requeue", last.sentence)
    return Decision("requeue", f"{last.sentence}; try {len(failures)} of {MAX_FAILURES} without a new checkpoint")


def find_bad_nodes(history: list[Outcome]) -> dict[str, str]:
    """Nodes to leave out of the next attempt, and why."""
    causes = [outcome.cause for outcome in history if outcome.cause and outcome.cause.suspects_node]
    failed = Counter(cause.host for cause in causes if cause.host)
    return {
        host: f"{count} attempts failed first on {host}"
        for host, count in failed.items()
        if count >= NODE_FAILURES_TO_EXCLUDE
    }


def _without_progress(history: list[Outcome]) -> list[Outcome]:
    """Failures at the end of the history without a new checkpoint; a stop on notice neither counts nor ends the row."""
    row = []
    for outcome in reversed(history):
        if outcome.end is not None:
            continue
        if outcome.progressed:
            break
        row.append(outcome)
    return row
