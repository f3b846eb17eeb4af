"""Which job a run was given to: `job.json`, written by submit and read by the batch shell and by whoever asks."""

import json
from dataclasses import dataclass

from configs.run_dir import RunDir, write_json
from slurm import queue
from slurm.site import Site


@dataclass(frozen=True)
class JobRecord:
    """The newest job of a run."""

    id: str | None  # None: being submitted
    site: Site  # as it was then; a later change of the profile does not reach a queued job
    after_attempt: int  # attempts up to this one belong to earlier jobs, and count no more
    submitted: float  # seconds since the epoch

    def write(self, run: RunDir) -> None:
        fields = {"id": self.id, "after_attempt": self.after_attempt, "submitted": self.submitted}
        write_json(run.job, fields | {"site": self.site.model_dump(mode="json")})

    @classmethod
    def read(cls, run: RunDir) -> "JobRecord":
        fields = json.loads(run.job.read_text())
        return cls(**fields | {"site": Site(**fields["site"])})


def living(run: RunDir) -> queue.Job | None:
    """The run's job, where it runs or may run yet."""
    if not run.job.is_file():
        return None
    record = JobRecord.read(run)
    if record.id is None:  # whoever submitted it was killed in the middle
        found = queue.of_script_in(run.slurm)
        return found[-1] if found else None
    job = queue.look([record.id]).get(record.id)
    return job if job is not None and job.alive else None
