"""What became of a run's attempts, as their own records tell: no queue and no clock of SLURM's is asked."""

from dataclasses import dataclass

from slurm.recovery.cause import Cause, find_cause
from store.checkpoint import checkpoints
from store.run.end import End
from store.run.records import ResumePoint
from store.run.run_dir import RunDir


@dataclass(frozen=True)
class Outcome:
    """One attempt that runs no more. Without an end it failed, or was lost with its node."""

    attempt: int
    end: End | None
    progressed: bool  # it committed a checkpoint that counts
    cause: Cause | None  # where there is no end


def read_outcomes(run: RunDir, after: int) -> list[Outcome]:
    """Every attempt after number `after`, oldest first. For a run none of whose attempts is running."""
    attempts = run.attempts()
    committed = {checkpoint.attempt for checkpoint in checkpoints.list_checkpoints(run)}
    for attempt in attempts:
        point = ResumePoint.read_if_written(attempt.resume_path)
        if point is not None and point.checkpoint:  # pruned since, but resumed from
            committed.add(int(point.checkpoint.rpartition("-a")[2]))
    outcomes = []
    for attempt in attempts:
        if attempt.number > after:
            end = End.read_if_written(attempt.end_path)
            cause = None if end else find_cause(attempt)
            outcomes.append(Outcome(attempt.number, end, attempt.number in committed, cause))
    return outcomes
