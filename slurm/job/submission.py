"""Runs on their way into the queue: what SLURM would refuse or never start is told before anything is written."""

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from configs.errors import LockstepError, UserError
from configs.scalars import format_time
from configs.schema import RunConfig
from configs.solve.batch import BatchPlan
from slurm.job.record import SWEEPS, JobRecord, find_active_job
from slurm.job.request import JobTerms, SbatchRequest, make_output_folder, request_array, request_run
from slurm.query.partitions import check_time_limit, query_partition_rules, warn_of_cancelling
from slurm.query.queue import Job, cancel_job
from slurm.query.survey import read_settings
from slurm.site import Site
from store.run.run_dir import RunDir
from store.run.submission import Submission

_CANNOT_NAME = "%\\\n\r"  # sbatch reads them as patterns and line ends in the names of its output files


class QueueableRun(Protocol):
    """A run that is checked, as the launcher prepares it; nothing of it is written yet."""

    @property
    def run(self) -> RunDir: ...

    @property
    def config(self) -> RunConfig: ...

    @property
    def batch_plan(self) -> BatchPlan: ...

    @property
    def submission(self) -> Submission: ...

    def write(self) -> None:
        """Write what all attempts of the run share."""


R = TypeVar("R", bound=QueueableRun)


@dataclass(frozen=True)
class JobSubmission(Generic[R]):
    """Runs that one job, or one job array, is to train: SLURM has been asked, and takes it."""

    runs: Sequence[R]
    terms: JobTerms
    request: SbatchRequest
    start: str  # when SLURM expects to start it, for a person
    note: str | None  # what else whoever submits it has to know

    def submit(self, runs: Sequence[R], held: Mapping[Path, str], locks: Mapping[Path, int]) -> list[Job]:
        """Queue those of its runs that are still to be queued, and answer their jobs.

        `held`: by the folder of a run the id of its job that is held, and goes first. `locks`, which the caller holds,
        are of no use to processes on other machines. Raises UserError where SLURM refuses the job, LockstepError where
        nobody tells whether there is one, or where somebody has just released a held job.
        """
        request = self.request if list(runs) == list(self.runs) else make_request(runs, self.terms)
        for folder in (request.folder, *(prepared.run.slurm_path for prepared in runs)):
            make_output_folder(folder)
        for prepared in runs:
            if prepared.run.path in held:
                _cancel_held_job(prepared.run, held[prepared.run.path])
        records = [_write_job_record(prepared, self.terms.site) for prepared in runs]
        jobs = request.submit()
        for prepared, record, job in zip(runs, records, jobs, strict=True):
            replace(record, id=job).write(prepared.run.job_path)
        return [Job(job, "PENDING") for job in jobs]


def check_submissions(runs: Sequence[R], site: Site) -> list[JobSubmission[R]]:
    """The runs in groups that one job or job array can train, each tested with `sbatch --test-only`.

    Raises UserError where SLURM refuses one of them, or would never start it, LockstepError where it does not answer.
    """
    rules = query_partition_rules()
    for prepared in runs:
        check_time_limit(rules, prepared.config.cluster.time or site.max_time, site)
    note = warn_of_cancelling(rules, read_settings().get("PreemptType", ""), site)
    submissions = []
    for group, terms in _group_by_terms(runs, site):
        request = make_request(group, terms)
        submissions.append(JobSubmission(group, terms, request, request.test(), note))
    return submissions


def make_request(runs: Sequence[QueueableRun], terms: JobTerms) -> SbatchRequest:
    """The job that trains the one run, or the array that trains the runs."""
    first = runs[0]
    if len(runs) == 1:
        return request_run(first.run, first.config.name, terms)
    identity = "".join(f"{prepared.run.path}{prepared.submission.content}" for prepared in runs)
    folder = first.run.path.parent / SWEEPS / sha256(identity.encode()).hexdigest()[:12]
    return request_array(folder, [prepared.run for prepared in runs], first.config.name, terms)


def require_sbatch() -> None:
    """Raises UserError on a machine that has none."""
    if shutil.which("sbatch") is None:
        raise UserError("there is no sbatch on this machine: submit from a login node, or train here with --local")


def check_limits(config: RunConfig, site: Site) -> None:
    """Raises UserError for what would only be found out in the queue, or never. Needs no cluster."""
    limit, notice = config.cluster.time or site.max_time, config.checkpoint.notice_seconds
    if config.cluster.time and site.max_time and config.cluster.time > site.max_time:
        time_limit, most = format_time(config.cluster.time), format_time(site.max_time)
        raise UserError(
            f"cluster.time: {time_limit} is more than the {most} that the site allows; write at most {most}"
        )
    if limit and limit < 2 * notice:
        cure = f"write at least {format_time(round(2 * notice))}, or a shorter notice"
        raise UserError(
            f"cluster.time: {format_time(limit)} is less than twice checkpoint.notice_seconds ({notice:g}), so that "
            f"attempts would stop almost as soon as they start; {cure}"
        )
    path = str(RunDir.for_config(config).path)
    forbidden = sorted({character for character in path if character in _CANNOT_NAME})
    if forbidden:
        listed = " and ".join(map(repr, forbidden))
        raise UserError(f"runs: {path!r} holds {listed}, which sbatch cannot have in a path; name another folder")


def _group_by_terms(runs: Sequence[R], site: Site) -> list[tuple[list[R], JobTerms]]:
    """A job array has one request for all its tasks: those that ask for the same go together."""
    groups: list[tuple[list[R], JobTerms]] = []
    for prepared in runs:
        terms = JobTerms.of_run(prepared.config, prepared.batch_plan, site)
        for group, others in groups:
            if terms == others:
                group.append(prepared)
                break
        else:
            groups.append(([prepared], terms))
    return groups


def _cancel_held_job(run: RunDir, held: str) -> None:
    """Take the run's job that is held out of the queue. Raises LockstepError where somebody has just released it."""
    cancel_job(held, only_pending=True)
    job = find_active_job(run)
    if job is not None and not job.held:
        raise LockstepError(
            f"{run.path}: job {job.id} was released meanwhile, and is {job.describe()}; nothing was queued"
        )


def _write_job_record(prepared: QueueableRun, site: Site) -> JobRecord:
    """Write all that a job reads, once no other one is in the queue. `job.json` says that one is being submitted,
    should we be killed before it is."""
    run = prepared.run
    prepared.write()
    newest = run.attempts()[-1].number if run.attempts() else 0
    record = JobRecord(None, site, newest, time.time())
    record.write(run.job_path)
    return record
