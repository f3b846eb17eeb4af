"""SLURM as one who starts runs: it fits `launcher.backend.Backend`, which it cannot import, by its methods."""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

from configs.errors import LockstepError
from configs.optimizers import check_package
from configs.schema import RunConfig
from configs.solve.batch import BatchPlan
from configs.solve.hardware import Hardware
from slurm.job.record import JobRecord, find_active_job
from slurm.query import queue
from slurm.query.queue import Job, query_jobs
from slurm.recovery.history import read_outcomes
from slurm.recovery.requeue import Decision, decide_next
from slurm.site import Site, find_site, load_site
from store.run.run_dir import Attempt, RunDir
from store.run.submission import plan_batch

if TYPE_CHECKING:  # brings submitit: most commands only look at jobs
    from slurm.job.submission import JobSubmission, QueueableRun

    R = TypeVar("R", bound=QueueableRun)

CANCELLING = 120.0  # seconds that a job may take to end after scancel


class SlurmBackend:
    """One for each command: it reads a site profile once."""

    name = "slurm"

    def __init__(self) -> None:
        self._sites: dict[str | None, Site] = {}

    def check_config(self, config: RunConfig) -> None:
        from slurm.job.submission import check_limits, require_sbatch

        require_sbatch()
        site = self._load_site(config)
        check_limits(config, site)
        if site.container is None:  # what is in one, its ranks find out
            check_package(config)

    def plan_batch(self, run: RunDir, config: RunConfig) -> BatchPlan:
        return plan_batch(run, config)

    def find_hardware(self, config: RunConfig) -> Hardware:
        """Of a site that is not known here nothing is known: one may plan for a cluster from anywhere."""
        name = config.cluster.site
        if name is not None and find_site(name) is None:
            return Hardware()
        return self._load_site(config).hardware

    def check_runs(self, runs: "Sequence[R]") -> "list[JobSubmission[R]]":
        from slurm.job.submission import check_submissions

        return check_submissions(runs, self._load_site(runs[0].config))

    def render_script(self, config: RunConfig) -> str:
        """What sbatch gets for the run of `config`, byte for byte. Needs no cluster, no model and no images."""
        from slurm.job.request import JobTerms, request_run
        from slurm.job.submission import check_limits

        site, run = self._load_site(config), RunDir.for_config(config)
        check_limits(config, site)
        terms = JobTerms.of_run(config, self.plan_batch(run, config), site)
        return request_run(run, config.name, terms).text

    def read_record(self, run: RunDir) -> JobRecord | None:
        return JobRecord.read_if_written(run.job_path)

    def query_jobs(self, ids: Sequence[str]) -> dict[str, Job]:
        return query_jobs(list(ids))

    def find_active_job(self, run: RunDir) -> Job | None:
        return find_active_job(run)

    def cancel_job(self, job: str) -> None:
        queue.cancel_job(job)
        deadline = time.monotonic() + CANCELLING
        while (now := query_jobs([job]).get(job)) is not None and not now.over:
            if time.monotonic() > deadline:
                raise _still_there(now)
            time.sleep(1)

    def decide_next(self, run: RunDir, through: Attempt | None = None) -> Decision:
        record = self.read_record(run)
        after = record.after_attempt if record else 0
        if through is None:
            return decide_next(read_outcomes(run, after))
        since = after if through.number > after else 0
        return decide_next([outcome for outcome in read_outcomes(run, since) if outcome.attempt <= through.number])

    def _load_site(self, config: RunConfig) -> Site:
        name = config.cluster.site
        if name not in self._sites:
            self._sites[name] = load_site(name)
        return self._sites[name]


def _still_there(job: Job) -> LockstepError:
    late = f"within {CANCELLING:.0f} s of scancel"
    if job.alive:
        problem = f"job {job.id} has not ended {late}: it is {job.state.lower()}"
    else:
        problem = f"SLURM has not told {late} whether job {job.id} has ended"
    return LockstepError(f"{problem}; see scontrol show job {job.id}")
