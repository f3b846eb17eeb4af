"""Whoever starts runs and knows what became of them: this machine, or SLURM. People's commands ask them alike.

The only way from the launcher to SLURM, but for `doctor` and `lab`, which are about SLURM itself. Another scheduler is
one class with these methods, one line in BACKENDS, and what here and in monitor/records.py goes by the names of two.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from configs.schema import RunConfig
from configs.solve.batch import BatchPlan
from configs.solve.hardware import Hardware
from launcher.local.backend import LocalBackend
from slurm.backend import SlurmBackend
from slurm.recovery.cause import Cause, find_cause
from slurm.recovery.requeue import Decision
from store.run.run_dir import Attempt, RunDir

if TYPE_CHECKING:  # preparing a run needs much that looking at one does not
    from launcher.submit.prepare import PreparedRun

__all__ = [  # Cause, find_cause and Decision are pure: what the records tell, whoever started the run
    "BACKENDS",
    "Backend",
    "BackendJob",
    "Cause",
    "CheckedRuns",
    "Decision",
    "LocalBackend",
    "SlurmBackend",
    "SubmittedJob",
    "find_backend",
    "find_backend_job",
    "find_cause",
    "read_submitted_job",
]


class BackendJob(Protocol):
    """What is under way for a run, or was: a job in the queue, or processes on this machine."""

    @property
    def id(self) -> str: ...

    @property
    def name(self) -> str:
        """For a person: `job 7`."""

    @property
    def state(self) -> str:
        """In SLURM's words: PENDING, RUNNING, or how it ended, such as COMPLETED, CANCELLED, PREEMPTED."""

    @property
    def source(self) -> str:
        """Who told: squeue, sacct, scontrol, lock or heartbeat."""

    @property
    def nodes(self) -> str:
        """Where it runs."""

    @property
    def alive(self) -> bool:
        """Whether it runs, or may run yet."""

    @property
    def over(self) -> bool:
        """Whether it surely runs no more. Neither alive nor over: nobody answered."""

    @property
    def held(self) -> bool:
        """Whether it waits for people, so that submitting the run again may replace it."""

    @property
    def needs_release(self) -> bool:
        """Whether it waits for somebody to release it, whoever holds it."""

    @property
    def reason(self) -> str:
        """The backend's own word for why it waits."""

    @property
    def wait_reason(self) -> str:
        """The same for a person, with what to do where waiting does not help."""

    @property
    def start_time(self) -> float | None:
        """When it started or is expected to, in seconds since the epoch."""

    @property
    def end_time(self) -> float | None:
        """When its time is over, in seconds since the epoch."""

    def describe(self) -> str:
        """What it is doing, for a person: `running on node1`."""


class SubmittedJob(Protocol):
    """What was noted down of a run's newest job when it was submitted."""

    @property
    def id(self) -> str | None:
        """None while it is being submitted."""

    @property
    def after_attempt(self) -> int:
        """Attempts up to this one belong to earlier jobs."""


class CheckedRuns(Protocol):
    """Runs that start together, and may start."""

    @property
    def runs(self) -> "Sequence[PreparedRun]": ...

    @property
    def start(self) -> str:
        """When they are expected to, for a person."""

    @property
    def note(self) -> str | None:
        """What else whoever submits them has to know."""

    def submit(
        self, runs: "Sequence[PreparedRun]", held: Mapping[Path, str], locks: Mapping[Path, int]
    ) -> Sequence[BackendJob]:
        """Start those of the runs that are still to be started, and answer their jobs, in order: queued ones, or, on
        this machine, what became of them.

        By the folder of a run: `held`, the id of its job that is held, and goes first; `locks`, the descriptor of its
        lock, which the caller holds. Raises UserError where the backend refuses, LockstepError where nobody tells what
        became of it, or with what a run on this machine failed of.
        """


class Backend(Protocol):
    """One who starts runs."""

    name: str  # its key in BACKENDS

    def check_config(self, config: RunConfig) -> None:
        """Raises UserError for what would never start, before images or a model are looked at."""

    def plan_batch(self, run: RunDir, config: RunConfig) -> BatchPlan:
        """On the shape that the run starts on there: of a node range the fewest nodes. Raises UserError where the batch
        does not divide."""

    def find_hardware(self, config: RunConfig) -> Hardware:
        """What the run's ranks compute on there, as far as anybody knows."""

    def check_runs(self, runs: "Sequence[PreparedRun]") -> "Sequence[CheckedRuns]":
        """All that can be known before the start, in groups that start together. Starts and writes nothing.

        Raises UserError where a run would be refused or never start, LockstepError where nobody answers.
        """

    def read_record(self, run: RunDir) -> SubmittedJob | None:
        """What was noted down of its newest job; None where it was not given to this backend."""

    def query_jobs(self, ids: Sequence[str]) -> Mapping[str, BackendJob]:
        """What is to be said of these jobs, with one question for all. Never raises; a job may be missing."""

    def find_active_job(self, run: RunDir) -> BackendJob | None:
        """The run's job, where it runs or may run yet. Raises LockstepError where nobody can tell."""

    def cancel_job(self, job: str) -> None:
        """End it, and return when it has ended. Raises LockstepError where it does not end, or nobody tells."""

    def decide_next(self, run: RunDir, through: Attempt | None = None) -> Decision | None:
        """What follows of the run's attempts, those after `through` left out; None where nothing is started again by
        itself."""


BACKENDS: dict[str, Callable[[], Backend]] = {"local": LocalBackend, "slurm": SlurmBackend}


def find_backend(attempt: Attempt) -> Backend:
    """The one that started the attempt."""
    return BACKENDS["slurm" if attempt.allocation_path.is_file() else "local"]()


def find_backend_job(run: RunDir, *, besides_lock: bool = False) -> tuple[Backend, BackendJob] | None:
    """The run's job that runs or may run yet, and whose it is. With `besides_lock` only one that does not hold the
    run's lock: for a caller who takes the lock, or has it.

    Raises LockstepError where nobody can tell.
    """
    for name, make_backend in BACKENDS.items():
        if besides_lock and name == "local":
            continue
        backend = make_backend()
        job = backend.find_active_job(run)
        if job is not None:
            return backend, job
    return None


def read_submitted_job(run: RunDir) -> SubmittedJob | None:
    """Of whichever backend the run was given to; None where it was not."""
    records = (make_backend().read_record(run) for make_backend in BACKENDS.values())
    return next((record for record in records if record is not None), None)
