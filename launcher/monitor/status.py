"""What becomes of runs right now: their folders are read first, then each backend is asked once for all runs whose end
they do not tell. Every row says which source answered."""

import time
from dataclasses import dataclass, replace

from configs.errors import LockstepError
from launcher.backend import BACKENDS, BackendJob, find_cause
from launcher.format import format_count
from launcher.monitor.records import RunRecords, read_records
from launcher.run_lock import is_run_held
from store.run.liveness import FRESH
from store.run.run_dir import RunDir

WAITING = ("submitting", "submitted", "pending")
ALIVE = (*WAITING, "running")
# What reading a damaged run raises: it must not hide the others.
_DAMAGE = (LockstepError, OSError, ValueError, KeyError, TypeError)
_PREEMPTED = "preempted by SLURM, which cancels here; lockstep submit resumes"
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
    rows: list[RunStatus] = []
    for run in runs:
        try:
            records.append(read_records(run))
        except _DAMAGE as error:
            rows.append(_unreadable(run, error))
    jobs = _query_jobs(records)
    for record in records:
        try:
            rows.append(_row(record, jobs.get(record.asks_for)))
        except _DAMAGE as error:
            rows.append(_unreadable(record.run, error))
    return sorted(rows, key=lambda row: (row.alive, row.name, row.path))


def read_status(run: RunDir) -> RunStatus:
    return read_statuses([run])[0]


def _query_jobs(records: list[RunRecords]) -> dict[tuple[str, str] | None, BackendJob]:
    """By what a run asks for: the backend's name, and the job's id there."""
    questions = list(dict.fromkeys(record.asks_for for record in records if record.asks_for is not None))
    jobs: dict[tuple[str, str] | None, BackendJob] = {}
    for name, make_backend in BACKENDS.items():
        ids = [job for backend, job in questions if backend == name]
        answers = make_backend().query_jobs(ids) if ids else {}
        jobs |= {(name, job.id): job for job in answers.values()}
    return jobs


def _row(records: RunRecords, job: BackendJob | None) -> RunStatus:
    row = _judge(records, job)
    metrics = records.metrics or {}
    skipped = int(metrics.get("optimizer/skipped", 0))
    if skipped:
        note = f"{format_count(skipped, 'step')} skipped, loss or gradient not finite"
        row = replace(row, detail="; ".join(filter(None, [row.detail, note])))
    ends = job.end_time if job is not None and job.state == "RUNNING" else None
    return replace(
        row,
        skipped=skipped,
        job=records.job.id if records.job and not (records.local and not records.waits_for_its_first) else None,
        attempt=records.newest.number if records.newest else None,
        step=records.step,
        steps=records.total_steps,
        loss=metrics.get("loss/train"),
        seconds_to_end=records.seconds_left if row.alive else None,
        seconds_to_wall=_seconds_until(ends),
    )


def _judge(records: RunRecords, job: BackendJob | None) -> RunStatus:
    """From the surest witness to the least: the end record, whoever started the run, a sign of life, what is left
    behind. A job of which its backend knows nothing is as good as none."""
    if records.settled and records.end is not None:
        end = records.end
        return _say(records, "stopped" if end.reason == "notice" else end.reason, end.notice or "")
    if job is not None and job.alive:
        return _judge_alive(records, job)
    known = job if job is not None and job.state != "UNKNOWN" else None
    unknown = _describe_unknown(records, job)
    if records.waits_for_its_first:
        return _judge_before_first(records, known, unknown)
    if records.newest is None:
        submitting = is_run_held(records.run)  # whoever submits it has its lock
        return _say(records, "submitting", source="lock") if submitting else _say(records, "not begun")
    if not records.local and records.end is None and known is None and _is_fresh(records):
        return _say(records, "running", source="heartbeat", training=True)
    return _judge_over(records, known, unknown)


def _describe_unknown(records: RunRecords, job: BackendJob | None) -> str:
    """What there is to say of a cluster's job of which its backend says nothing."""
    if records.asks_for is None or records.asks_for[0] == "local":
        return ""
    number = records.asks_for[1]
    if job is not None and not job.over:
        return f"SLURM does not answer, so nobody knows of job {number}"
    return f"SLURM here knows nothing of job {number}"


def _judge_alive(records: RunRecords, job: BackendJob) -> RunStatus:
    if job.needs_release:
        return _say(records, "held", _describe_hold(records, job), job.source)
    if job.state == "PENDING":
        expected = job.start_time if _seconds_until(job.start_time) is not None else None
        start = f", expected to start at {_format_time(expected)}" if expected is not None else ""
        return _say(records, "pending", f"{job.wait_reason}{start}", job.source)
    if job.state != "RUNNING":
        return _say(records, "pending", job.state.lower(), job.source)
    place = "" if records.local else f"on {job.nodes}"
    if not records.local and not _has_begun(records, job):
        return _say(records, "running", f"{place}, an attempt is about to begin", job.source)
    detail = "; ".join(filter(None, [place, _describe_silence(records)]))
    return _say(records, "running", detail, job.source, training=True)


def _describe_hold(records: RunRecords, job: BackendJob) -> str:
    """Why the job is held: by our own decision after its attempts, or by others, who have to release it."""
    assert records.asks_for is not None
    decision = BACKENDS[records.asks_for[0]]().decide_next(records.run)
    if decision is not None and decision.action == "hold":
        return decision.reason
    return f"SLURM or a person holds the job ({job.reason}); scontrol release {job.id} lets it go on"


def _has_begun(records: RunRecords, job: BackendJob) -> bool:
    """Whether the newest attempt belongs to this start of the job: a requeue keeps the job's number."""
    if records.waits_for_its_first or records.end is not None or records.allocation is None:
        return False
    return job.start_time is None or records.allocation.time > job.start_time - _SKEW


def _judge_before_first(records: RunRecords, job: BackendJob | None, unknown: str) -> RunStatus:
    """The newest job has begun no attempt, and does not live."""
    assert records.job is not None
    if records.job.id is None:
        return _say(records, "submitting", "or whoever submitted it was interrupted: submit it again")
    if job is None:
        return _say(records, "submitted", unknown)
    state = "cancelled" if job.state == "CANCELLED" else "failed"
    return _say(records, state, f"its job ended before an attempt began ({job.state})", job.source)


def _judge_over(records: RunRecords, job: BackendJob | None, unknown: str) -> RunStatus:
    """The newest attempt runs no more, and nothing is in the queue."""
    source = job.source if job else "records"
    suffix = f"; {unknown}" if job is None and unknown else ""
    preempted = job is not None and job.state == "PREEMPTED"  # for good: where SLURM requeues, the job is pending
    if records.end is not None:
        return _say(records, "stopped", _PREEMPTED if preempted else f"on {records.end.notice}{suffix}", source)
    if preempted:
        return _say(records, "stopped", f"{_PREEMPTED} from the newest checkpoint", source)
    if job is not None and job.state == "CANCELLED":
        return _say(records, "cancelled", "earlier checkpoints are kept", source)
    assert records.newest is not None
    cause = find_cause(records.newest)
    if cause.kind == "unknown" and job is not None:
        suffix = f"; SLURM says {job.state}"
    return _say(records, "lost" if cause.kind == "unknown" else "failed", f"{cause.sentence}{suffix}", source)


def _describe_silence(records: RunRecords) -> str:
    """What is to be said of ranks that run, as their backend has it, and give no sign of life."""
    age = _seconds_since_beat(records)
    return f"no sign of life for {age:.0f} s" if age is not None and age > FRESH else ""


def _is_fresh(records: RunRecords) -> bool:
    age = _seconds_since_beat(records)
    return age is not None and age < FRESH


def _seconds_since_beat(records: RunRecords) -> float | None:
    return time.time() - records.beat.time if records.beat else None


def _seconds_until(moment: float | None) -> float | None:
    """None where there is no such time, or it is past."""
    return moment - time.time() if moment is not None and moment > time.time() else None


def _format_time(moment: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(moment))


def _say(
    records: RunRecords, state: str, detail: str = "", source: str = "records", *, training: bool = False
) -> RunStatus:
    run = records.run.path
    return RunStatus(run.name, str(run), state, " ".join(detail.split()), source, training=training)


def _unreadable(run: RunDir, error: Exception) -> RunStatus:
    detail = str(error) if isinstance(error, LockstepError) else f"{type(error).__name__}: {error}"
    return RunStatus(run.path.name, str(run.path), "unreadable", detail, "records")
