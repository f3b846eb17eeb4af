"""What becomes of runs right now: their folders are read first, then SLURM is asked once for all whose end they do not
tell. Every row says which source answered."""

import re
import time
from dataclasses import dataclass, replace

from launcher.format import format_count
from launcher.monitor.records import RunRecords, is_run_held, read_records
from slurm.job.record import FRESH
from slurm.query import queue
from slurm.query.queue import Job
from slurm.recovery.cause import find_cause
from slurm.recovery.history import read_outcomes
from slurm.recovery.requeue import decide_next
from store.run.run_dir import RunDir

WAITING = ("submitting", "submitted", "pending")
ALIVE = (*WAITING, "running")
_PREEMPTED = "preempted by SLURM, which cancels here; lockstep submit goes on"
# SLURM's own reasons: "launch failure limit exceeded requeued held" after too many preemptions, JobHeldAdmin, …
_HELD = re.compile("[Hh]eld|ReservationDeleted")
_SKEW = 5.0  # seconds by which the clocks of a node and of SLURM's controller may differ


@dataclass(frozen=True)
class RunStatus:
    """One run. Times are seconds."""

    name: str
    path: str
    state: str  # finished, stopped, running, pending, held, failed, lost, cancelled, …
    detail: str  # why, in one line
    source: str  # squeue, sacct, scontrol, lock, heartbeat or records: who told the state
    job: str | None = None
    attempt: int | None = None
    step: int | None = None
    steps: int | None = None
    loss: float | None = None
    skipped: int = 0  # steps of the run that updated nothing, since their loss or gradient was not finite
    seconds_to_end: float | None = None
    seconds_to_wall: float | None = None  # to the end of the job's time limit
    training: bool = False  # the newest attempt is under way

    @property
    def alive(self) -> bool:
        """Whether it goes on, or will, without anybody's help."""
        return self.state in ALIVE


def read_statuses(runs: list[RunDir]) -> list[RunStatus]:
    """A row per run, those that live last: there the eye is when a long list has scrolled by."""
    records: list[RunRecords] = []
    broken: list[RunStatus] = []
    for run in runs:
        try:
            records.append(read_records(run))
        except (OSError, ValueError, KeyError, TypeError) as error:  # one bad folder must not hide the others
            broken.append(_unreadable(run, error))
    jobs = queue.query_jobs(list(dict.fromkeys(job for record in records if (job := record.asks_for))))
    found = [_row(record, jobs) for record in records]
    return sorted([*found, *broken], key=lambda row: (row.alive, row.name, row.path))


def read_status(run: RunDir) -> RunStatus:
    return read_statuses([run])[0]


def _row(records: RunRecords, jobs: dict[str, Job]) -> RunStatus:
    job = jobs.get(records.asks_for or "")
    unknown = f"SLURM here knows nothing of job {records.asks_for}"
    if job is not None and job.state == queue.UNKNOWN:
        unknown = unknown if job.over else f"SLURM does not answer, so nobody knows of job {records.asks_for}"
        job = None
    try:
        row = _judged(records, job, unknown)
    except (OSError, ValueError, KeyError, TypeError) as error:
        return _unreadable(records.run, error)
    metrics = records.metrics or {}
    skipped = int(metrics.get("optimizer/skipped", 0))
    if skipped:
        many = format_count(skipped, "step")
        row = replace(row, detail="; ".join(filter(None, [row.detail, f"{many} skipped, loss or gradient not finite"])))
    return replace(
        row,
        skipped=skipped,
        job=records.job.id if records.job and not (records.local and not records.waits_for_its_first) else None,
        attempt=records.newest.number if records.newest else None,
        step=records.step,
        steps=records.total_steps,
        loss=metrics.get("loss/train"),
        seconds_to_end=records.seconds_left if row.alive else None,
        seconds_to_wall=_until(job.end) if job and job.state == "RUNNING" else None,
    )


def _judged(records: RunRecords, job: Job | None, unknown: str) -> RunStatus:
    """From the surest witness to the least: the end record, SLURM, the lock, a sign of life, what is left behind.
    `unknown` is what there is to say of a job of which SLURM says nothing."""
    end = records.end
    if records.settled and end is not None:
        done = end.reason == "finished"
        return _say(records, "finished" if done else "stopped", "" if done else str(end.notice), "records")
    if job is not None and job.alive:
        return _alive(records, job)
    if records.waits_for_its_first:
        return _before_the_first(records, job, unknown)
    if records.newest is None:
        submitting = is_run_held(records.run)
        return _say(records, "submitting" if submitting else "not begun", "", "lock" if submitting else "records")
    if end is None and job is None:
        held = is_run_held(records.run) if records.local else None
        if held:
            return _say(records, "running", _silence(records), "lock", training=True)
        if held is None and (age := _age(records)) is not None and age < FRESH:
            return _say(records, "running", "", "heartbeat", training=True)
    return _over(records, job, unknown)


def _alive(records: RunRecords, job: Job) -> RunStatus:
    if _HELD.search(job.reason):
        after = records.job.after_attempt if records.job else 0
        decision = decide_next(read_outcomes(records.run, after))
        others = f"SLURM or a person holds the job ({job.reason}); scontrol release {job.id} lets it go on"
        return _say(records, "held", decision.reason if decision.action == "hold" else others, job.source)
    if job.state == "PENDING":
        start = f", expected to start at {job.start.replace('T', ' ')}" if _until(job.start) is not None else ""
        return _say(records, "pending", f"{queue.describe_reason(job)}{start}", job.source)
    if job.state == "RUNNING":
        if not _begun_in(records, job):
            return _say(records, "running", f"on {job.nodes}, an attempt is about to begin", job.source)
        where = f"on {job.nodes}"
        silence = _silence(records)
        return _say(records, "running", f"{where}; {silence}" if silence else where, job.source, training=True)
    return _say(records, "pending", job.state.lower(), job.source)


def _begun_in(records: RunRecords, job: Job) -> bool:
    """Whether the newest attempt belongs to this start of the job: a requeue keeps the job's number."""
    if records.waits_for_its_first or records.end is not None or records.on is None:
        return False
    started = queue.parse_timestamp(job.start)
    return started is None or float(records.on["time"]) > started - _SKEW


def _before_the_first(records: RunRecords, job: Job | None, unknown: str) -> RunStatus:
    assert records.job is not None
    if records.job.id is None:
        return _say(records, "submitting", "or whoever submitted it was interrupted: submit it again", "records")
    if job is None:
        return _say(records, "submitted", unknown, "records")
    state = "cancelled" if job.state == "CANCELLED" else "failed"
    return _say(records, state, f"its job ended before an attempt began ({job.state})", job.source)


def _over(records: RunRecords, job: Job | None, unknown: str) -> RunStatus:
    """The newest attempt runs no more, and nothing is in the queue."""
    unknown = f"; {unknown}" if records.asks_for and job is None else ""
    source = job.source if job else "records"
    preempted = job is not None and job.state == "PREEMPTED"  # for good: where SLURM requeues, the job is pending
    if records.end is not None:
        return _say(records, "stopped", _PREEMPTED if preempted else f"on {records.end.notice}{unknown}", source)
    assert records.newest is not None
    cause = find_cause(records.newest)
    if preempted:
        return _say(records, "stopped", f"{_PREEMPTED} from the newest checkpoint", source)
    if job is not None and job.state == "CANCELLED":
        return _say(records, "cancelled", "what it had saved stands", source)
    if cause.kind == "unknown":
        said = f"; SLURM says {job.state}" if job else unknown
        return _say(records, "lost", f"{cause.sentence}{said}", source)
    return _say(records, "failed", f"{cause.sentence}{unknown}", source)


def _silence(records: RunRecords) -> str:
    """What is to be said of ranks that run, as SLURM has it, and give no sign of life."""
    age = _age(records)
    return f"no sign of life for {age:.0f} s" if age is not None and age > FRESH else ""


def _age(records: RunRecords) -> float | None:
    return time.time() - float(records.beat["time"]) if records.beat else None


def _until(moment: str) -> float | None:
    """Seconds to a time of SLURM's; None where it has none, or it is past."""
    then = queue.parse_timestamp(moment)
    return then - time.time() if then is not None and then > time.time() else None


def _say(records: RunRecords, state: str, detail: str, source: str, *, training: bool = False) -> RunStatus:
    run = records.run.path
    return RunStatus(run.name, str(run), state, " ".join(detail.split()), source, training=training)


def _unreadable(run: RunDir, error: Exception) -> RunStatus:
    return RunStatus(run.path.name, str(run.path), "unreadable", f"{type(error).__name__}: {error}", "records")
