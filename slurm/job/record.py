"""Which job a run was given to: `job.json`, written by submit and read by the batch shell and by whoever asks."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator

from configs.errors import LockstepError
from slurm.query import queue
from slurm.site import Site
from store.run.end import End
from store.run.liveness import FRESH, find_training_attempt
from store.run.records import Record
from store.run.run_dir import RunDir

SWEEPS = "sweeps"  # beside the runs: the folder of their job arrays
ARRAY = "runs.json"  # of a job array: the folders of its runs, in the order of their tasks


def _drop_unknown_keys(site: object) -> object:
    return {key: value for key, value in site.items() if key in Site.model_fields} if isinstance(site, dict) else site


@dataclass(frozen=True)
class JobRecord(Record):
    """The newest job of a run."""

    id: str | None  # None: being submitted
    # As it was then: a later change of the profile does not reach a queued job.
    site: Annotated[Site, BeforeValidator(_drop_unknown_keys)]
    after_attempt: int  # attempts up to this one belong to earlier jobs, and count no more
    submitted: float  # seconds since the epoch


def find_active_job(run: RunDir) -> queue.Job | None:
    """The run's job, where it runs or may run yet.

    Raises LockstepError where nobody can tell: SLURM does not answer, or the ranks contradict it.
    """
    record = JobRecord.read_if_written(run.job_path)
    if record is None:
        return None
    name = f"job {record.id}" if record.id else "a job"
    way_out = f"ask where that job runs; if that cluster is no more, remove {run.job_path}"
    if not queue.has_slurm():
        if _came_to_its_end(run, record):
            return None
        raise LockstepError(
            f"{run.path}: was given to {name}, and there is no SLURM on this machine to tell whether it still lives; "
            + way_out
        )
    job = _query_recorded(record.id) if record.id else _find_unrecorded(run)
    if job is None:
        raise LockstepError(
            f"{run.path}: SLURM does not answer, so nobody can tell whether {name} of this run still lives; "
            f"try again once squeue answers, or {way_out}"
        )
    if job.alive:
        return job
    is_certain = job.state != queue.UNKNOWN and job.source != "sacct"  # the controller's own word
    attempt = find_training_attempt(run)
    if not is_certain and attempt is not None and attempt.allocation_path.is_file():
        raise LockstepError(
            f"{run.path}: SLURM here knows no living job{f' {record.id}' if record.id else ''} of it, but ranks of "
            f"attempt {attempt.number} gave a sign of life within the last {FRESH:.0f} s; ask where that job runs, or "
            "try again in half a minute"
        )
    return None


def _query_recorded(number: str) -> queue.Job | None:
    """What SLURM says of that job; None where it does not answer."""
    job = queue.query_jobs([number])[number]
    return job if job.alive or job.over else None


def _find_unrecorded(run: RunDir) -> queue.Job | None:
    """The run's newest job, found by its script, for whoever submitted it was killed, or sbatch's answer named none.
    Where there is none an unknown one; None where squeue does not answer."""
    jobs = queue.query_job_scripts()
    if jobs is None:
        return None
    ours = [job for job, script in jobs if _starts(script, job.id, run)]
    return ours[-1] if ours else queue.Job("", queue.UNKNOWN, source="squeue")


def _came_to_its_end(run: RunDir, record: JobRecord) -> bool:
    """Whether the newest attempt since the job was submitted says that nothing goes on by itself."""
    newest = run.attempts()[-1:]
    if not newest or newest[0].number <= record.after_attempt:
        return False
    end = End.read_if_written(newest[0].end_path)
    return end is not None and end.is_final


def _starts(script: Path, job: str, run: RunDir) -> bool:
    """Whether job `job`, made from `script`, is the run's own, or the task of a sweep's array that belongs to it."""
    if script.parent == run.slurm_path:
        return True
    runs = script.parent / ARRAY
    if script.parent.parent != run.path.parent / SWEEPS or not runs.is_file():
        return False
    task = job.partition("_")[2]
    return bool(json.loads(runs.read_text())[int(task or 0)] == str(run.path))
