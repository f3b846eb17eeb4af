"""`lockstep why`: what the newest failed attempt died of, as the ranks and SLURM wrote it down, and what follows."""

import time
from pathlib import Path

from launcher.backend import Cause, find_backend, find_cause
from launcher.monitor import status
from launcher.monitor.status import RunStatus
from launcher.monitor.status_text import format_steps
from store.checkpoint import checkpoints
from store.run.end import End
from store.run.run_dir import Attempt, RunDir


def explain_failure(run: RunDir) -> str:
    """A few lines. Never a guess: where nobody tells, the cause is unknown."""
    row = status.read_status(run)
    attempt = find_failed_attempt(run, row)
    if attempt is None:
        return _nothing_failed(run, row)
    cause = find_cause(attempt)
    sentence = cause.sentence if cause.kind != "unknown" else "lost, cause unknown"
    lines = [f"attempt {attempt.number} of {row.name}: {sentence}"]
    if first := _first(attempt, cause):
        lines.append(f"first    {first}")
    if cause.secondary_failures:
        lines.append(f"victims  {_ranks(cause.secondary_failures)} failed of it")
    lines.append(f"log      {_log(run, attempt, cause)}")
    lines.append(f"then     {_then(run, attempt, cause, row)}")
    lines.append(f"now      {_now(row)}")
    return "\n".join(lines)


def find_failed_attempt(run: RunDir, row: RunStatus) -> Attempt | None:
    """The newest attempt that runs no more and has no end record."""
    for attempt in reversed(run.attempts()):
        if End.read(attempt) is None and not (row.training and attempt.number == row.attempt):
            return attempt
    return None


def _nothing_failed(run: RunDir, row: RunStatus) -> str:
    if row.attempt is None and not row.alive and row.state != "not begun":  # the job ended in its own first lines
        return f"{row.name}: {row.detail}\nlog      {_job_output(run) or run.slurm}"
    return f"nothing failed: {row.name} is {_now(row)}"


def _first(attempt: Attempt, cause: Cause) -> str:
    """When it happened, where, and in which step."""
    if cause.rank is None:
        return cause.kind if cause.kind != "unknown" else ""
    beat = attempt.heartbeats().get(cause.rank)
    report = next((one for one in attempt.failures() if one["rank"] == cause.rank), None)
    known = report or beat
    words = [time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(known["time"]))] if known else []
    words.append(f"rank {cause.rank} on {cause.host}")
    words.append(f"step {beat['step'] + 1}" if beat else "before its first step")
    return f"{', '.join(words)}: {cause.kind}"


def _ranks(numbers: tuple[int, ...]) -> str:
    """`ranks 0-2, 5`: ten thousand victims are still one line."""
    rows: list[list[int]] = []
    for number in sorted(numbers):
        if rows and number == rows[-1][-1] + 1:
            rows[-1].append(number)
        else:
            rows.append([number])
    listed = ", ".join(str(row[0]) if len(row) == 1 else f"{row[0]}-{row[-1]}" for row in rows)
    return f"rank{'s' if len(numbers) > 1 else ''} {listed}"


def _log(run: RunDir, attempt: Attempt, cause: Cause) -> Path:
    """The log of the rank that failed first; otherwise what its starter wrote."""
    if cause.rank is not None and attempt.log(cause.rank).is_file():
        return attempt.log(cause.rank)
    if attempt.launcher_log.is_file():
        return attempt.launcher_log
    return _job_output(run) or attempt.launcher_log.parent


def _job_output(run: RunDir) -> Path | None:
    outputs = sorted(run.slurm.glob("*.out"), key=lambda path: path.stat().st_mtime)
    return outputs[-1] if outputs else None


def _then(run: RunDir, attempt: Attempt, cause: Cause, row: RunStatus) -> str:
    """What was decided after this attempt."""
    found = checkpoints.list_checkpoints(run)
    place = f"after step {found[-1].step}" if found else "from the start"
    decision = find_backend(attempt).decide_next(run, attempt)
    if decision is None:
        mend = "mend that first, then " if cause.is_user_error else ""
        return f"{mend}lockstep submit goes on {place}; a local run is not started again by itself"
    newest = attempt.number == row.attempt
    if decision.action == "requeue" and row.state == "held" and newest:
        return f"its job is held, and goes on {place} once it is released"
    over = not row.alive and row.source in ("squeue", "sacct", "scontrol") and newest
    if decision.action == "requeue" and over:
        return f"SLURM has ended its job and does not start it again; lockstep submit goes on {place}"
    words = {"requeue": "it is started again by itself", "hold": "it is held for you", "complete": "it is left at that"}
    said = decision.reason.removeprefix(cause.sentence).strip("; ")  # said above
    return words[decision.action] + (f": {said}" if said else "")


def _now(row: RunStatus) -> str:
    attempt = f", attempt {row.attempt}" if row.attempt is not None else ""
    done = f", {format_steps(row)} steps" if row.steps is not None else ""
    detail = (
        f": {row.detail}" if row.detail and row.state in (*status.ALIVE, "finished", "stopped", "held", "lost") else ""
    )
    return f"{row.state}{attempt}{done}{detail} ({row.source})"
