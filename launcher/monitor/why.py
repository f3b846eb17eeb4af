"""`lockstep why`: what the newest failed attempt died of, as the ranks and SLURM wrote it down, and what follows."""

import time
from pathlib import Path

from launcher.backend import Cause, find_backend, find_cause
from launcher.monitor import status
from launcher.monitor.status import RunStatus
from launcher.monitor.status_text import format_steps
from store.checkpoint.checkpoints import list_checkpoints
from store.run.end import End
from store.run.records import read_failures, read_heartbeats
from store.run.run_dir import Attempt, RunDir

_DETAILED = (*status.ALIVE, "finished", "stopped", "held", "lost")  # states whose detail is not the failure itself


def explain_failure(run: RunDir) -> str:
    """A few lines. Never a guess: where nobody tells, the cause is unknown."""
    row = status.read_status(run)
    attempt = find_failed_attempt(run, row)
    if attempt is None:
        return _explain_without_failure(run, row)
    cause = find_cause(attempt)
    sentence = cause.sentence if cause.kind != "unknown" else "lost, cause unknown"
    lines = [f"attempt {attempt.number} of {row.name}: {sentence}"]
    first = _first_failure(attempt, cause)
    if first:
        lines.append(f"first    {first}")
    if cause.secondary_failures:
        lines.append(f"others   {_list_ranks(cause.secondary_failures)} failed because of it")
    lines.append(f"log      {_find_log(run, attempt, cause)}")
    lines.append(f"then     {_consequence(run, attempt, cause, row)}")
    lines.append(f"now      {_current_state(row)}")
    return "\n".join(lines)


def find_failed_attempt(run: RunDir, row: RunStatus) -> Attempt | None:
    """The newest attempt that runs no more and has no end record."""
    for attempt in reversed(run.attempts()):
        is_training = row.training and attempt.number == row.attempt
        if not is_training and End.read_if_written(attempt.end_path) is None:
            return attempt
    return None


def _explain_without_failure(run: RunDir, row: RunStatus) -> str:
    job_failed = row.attempt is None and not row.alive and row.state != "not begun"
    if job_failed:  # in its own first lines, before any rank was started
        return f"{row.name}: {row.detail}\nlog      {_find_job_output(run) or run.slurm_path}"
    return f"nothing failed: {row.name} is {_current_state(row)}"


def _first_failure(attempt: Attempt, cause: Cause) -> str:
    """When it happened, where, and in which step; as much of it as is known."""
    if cause.rank is None:
        return cause.kind if cause.kind != "unknown" else ""
    beat = read_heartbeats(attempt).get(cause.rank)
    reports = {report.rank: report for report in read_failures(attempt)}
    record = reports.get(cause.rank) or beat
    parts = []
    if record:
        parts.append(time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.time)))
    parts.append(f"rank {cause.rank} on {cause.host}")
    parts.append(f"step {beat.step + 1}" if beat else "before its first step")
    return f"{', '.join(parts)}: {cause.kind}"


def _list_ranks(ranks: tuple[int, ...]) -> str:
    """`ranks 0-2, 5`: ten thousand of them are still one line."""
    ranges: list[tuple[int, int]] = []
    for rank in sorted(ranks):
        if ranges and rank == ranges[-1][1] + 1:
            ranges[-1] = (ranges[-1][0], rank)
        else:
            ranges.append((rank, rank))
    listed = ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)
    return f"rank {listed}" if len(ranks) == 1 else f"ranks {listed}"


def _find_log(run: RunDir, attempt: Attempt, cause: Cause) -> Path:
    """The log of the rank that failed first; otherwise what its starter wrote."""
    if cause.rank is not None and attempt.log_path(cause.rank).is_file():
        return attempt.log_path(cause.rank)
    if attempt.launcher_log_path.is_file():
        return attempt.launcher_log_path
    return _find_job_output(run) or attempt.launcher_log_path.parent


def _find_job_output(run: RunDir) -> Path | None:
    outputs = sorted(run.slurm_path.glob("*.out"), key=lambda path: path.stat().st_mtime)
    return outputs[-1] if outputs else None


def _consequence(run: RunDir, attempt: Attempt, cause: Cause, row: RunStatus) -> str:
    """What was decided after this attempt, and what people have to do."""
    checkpoints = list_checkpoints(run)
    resumes = f"resumes after step {checkpoints[-1].step}" if checkpoints else "starts from the beginning"
    decision = find_backend(attempt).decide_next(run, attempt)
    if decision is None:
        first = "fix the cause, then " if cause.is_user_error else ""
        return f"a local run is not restarted automatically; {first}lockstep submit {resumes}"
    if decision.action == "requeue" and attempt.number == row.attempt:
        # the job's state may stand against the decision: SLURM and people can hold or end it, too
        if row.state == "held":
            return f"its job is held; once released it {resumes}"
        if not row.alive and row.source in ("squeue", "sacct", "scontrol"):
            return f"SLURM ended its job and does not restart it; lockstep submit {resumes}"
    reason = decision.reason.removeprefix(cause.sentence).strip("; ")  # the sentence is the first line already
    reason = f": {reason}" if reason else ""
    if decision.action == "hold":
        return f"held{reason}; fix the cause, then run lockstep submit again"
    if decision.action == "complete":
        return f"no further attempt{reason}"
    return f"restarted automatically{reason}"


def _current_state(row: RunStatus) -> str:
    text = row.state
    if row.attempt is not None:
        text += f", attempt {row.attempt}"
    if row.steps is not None:
        text += f", {format_steps(row)} steps"
    if row.detail and row.state in _DETAILED:
        text += f": {row.detail}"
    return f"{text} (reported by {row.source})"
