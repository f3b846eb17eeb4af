"""The run directory (docs/design.md, contract 4): one class names every path in it.

State files are written atomically; logs and metrics are append-only files of one attempt.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from configs.errors import UserError
from store.files import PRIVATE, SHARED

if TYPE_CHECKING:  # brings pydantic: most commands only look into a folder
    from configs.schema import RunConfig

_ATTEMPT = re.compile(r"(?!0000)[0-9]{4}|[1-9][0-9]{4,}")  # the name of its folder


@dataclass(frozen=True)
class Attempt:
    """One start of a run's processes; everything it writes lies under `attempts/NNNN`."""

    path: Path

    @property
    def number(self) -> int:
        """From 1 on."""
        return int(self.path.name)

    @property
    def plan_path(self) -> Path:
        return self.path / "plan.json"

    @property
    def deepspeed_path(self) -> Path:
        return self.path / "deepspeed.json"

    @property
    def environment_path(self) -> Path:
        return self.path / "environment.json"

    @property
    def code_diff_path(self) -> Path:
        """What was changed in Lockstep's own code since its commit."""
        return self.path / "code.diff"

    @property
    def resume_path(self) -> Path:
        """Where the attempt starts from: its first act, by which readers ignore what older ones add later."""
        return self.path / "resume.json"

    @property
    def saved_path(self) -> Path:
        """The newest checkpoint that it committed, for the day on which the checkpoints' folder is away."""
        return self.path / "saved.json"

    @property
    def metrics_path(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def end_path(self) -> Path:
        return self.path / "end.json"

    @property
    def rendezvous_path(self) -> Path:
        """Where rank 0 says how the others reach it."""
        return self.path / "rendezvous.json"

    @property
    def sbatch_path(self) -> Path:
        """A copy of the script that started it."""
        return self.path / "job.sbatch"

    @property
    def allocation_path(self) -> Path:
        """Written where SLURM started the attempt, not where a person did."""
        return self.path / "nodes.json"

    @property
    def launcher_log_path(self) -> Path:
        return self.path / "logs" / "launcher.log"

    def log_path(self, rank: int) -> Path:
        return self.path / "logs" / f"rank-{rank:04d}.log"

    def heartbeat_path(self, rank: int) -> Path:
        return self.path / "heartbeats" / f"rank-{rank:04d}.json"

    def bad_samples_path(self, rank: int) -> Path:
        return self.path / "bad-samples" / f"rank-{rank:04d}.jsonl"

    def failure_path(self, rank: int) -> Path:
        return self.path / "failures" / f"rank-{rank:04d}.json"

    @property
    def stacks_path(self) -> Path:
        """What every thread of every rank was at when the ranks were found to hang; there is none before."""
        return self.path / "stacks"

    def stack_path(self, rank: int) -> Path:
        return self.stacks_path / f"rank-{rank:04d}.txt"

    @property
    def flight_recorder_path(self) -> Path:
        """The last collectives of each rank, as torch's flight recorder writes them: for `torchfrtrace`."""
        return self.path / "flight-recorder"


@dataclass(frozen=True)
class RunDir:
    """`<runs>/<run id>`: where launcher and ranks meet."""

    path: Path

    @classmethod
    def open(cls, folder: str | Path) -> "RunDir":
        """The run in `folder`. Raises UserError where there is none."""
        run = cls(Path(os.path.abspath(folder)))  # without `..`, as its jobs' scripts have it
        if not run.config_path.is_file():
            raise UserError(f"{folder}: is not a run directory (no run.yaml)")
        return run

    @classmethod
    def for_config(cls, config: "RunConfig") -> "RunDir":
        """Where the run of `config` lies, or will."""
        return cls(Path(config.runs, config.name))

    @property
    def config_path(self) -> Path:
        return self.path / "run.yaml"

    @property
    def submission_path(self) -> Path:
        return self.path / "submission.json"

    @property
    def job_path(self) -> Path:
        return self.path / "job.json"

    @property
    def slurm_path(self) -> Path:
        """Jobs' scripts, and what their batch shells and srun print. Only its owner may write in it."""
        return self.path / "slurm"

    @property
    def sbatch_path(self) -> Path:
        """The text that sbatch got for the newest job."""
        return self.slurm_path / "job.sbatch"

    @property
    def control_path(self) -> Path:
        """Requests from people: a file each, which holds who asked."""
        return self.path / "control"

    @property
    def stop_request_path(self) -> Path:
        return self.control_path / "stop"

    @property
    def save_request_path(self) -> Path:
        return self.control_path / "save"

    @property
    def lock_path(self) -> Path:
        return self.path / "lock"

    @property
    def dataset_path(self) -> Path:
        return self.path / "dataset.arrow"

    @property
    def old_dataset_path(self) -> Path:  # of earlier versions
        return self.path / "dataset.jsonl"

    @property
    def bad_samples_path(self) -> Path:
        return self.path / "bad-samples.jsonl"

    @property
    def metrics_path(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def tensorboard_path(self) -> Path:
        return self.path / "tensorboard"

    @property
    def checkpoints_path(self) -> Path:
        return self.path / "checkpoints"

    @property
    def pictures_path(self) -> Path:
        return self.path / "pictures"

    def pictures_path_at(self, step: int) -> Path:
        return self.pictures_path / f"step-{step:08d}"

    @property
    def base_path(self) -> Path:
        """A fork's base model: the weights of the run that it was forked from."""
        return self.path / "base"

    @property
    def origin_path(self) -> Path:
        """Of a fork: whose weights these are."""
        return self.base_path / "origin.json"

    @property
    def compile_path(self) -> Path:
        """What torch.compile made, for the attempts to come; code, so only its owner may write in it."""
        return self.path / "compile"

    @property
    def pipeline_path(self) -> Path:
        return self.path / "pipeline"

    def attempts(self) -> list[Attempt]:
        """All attempts, oldest first. A folder without a plan is of one that was never opened to its end."""
        names = [plan.parent.name for plan in (self.path / "attempts").glob("*/plan.json")]
        return [self.attempt(number) for number in sorted(int(name) for name in names if _ATTEMPT.fullmatch(name))]

    def attempt(self, number: int) -> Attempt:
        return Attempt(self.path / "attempts" / f"{number:04d}")

    def open_attempt(self) -> Attempt:
        """Make the next attempt's folder; mkdir decides between two that try at once.

        Only its owner may write in it, whatever the umask: shells and srun open logs by name, and follow links.
        """
        number = self.attempts()[-1].number + 1 if self.attempts() else 1
        self.path.mkdir(parents=True, exist_ok=True)
        self.attempt(number).path.parent.mkdir(SHARED, exist_ok=True)
        while True:
            attempt = self.attempt(number)
            try:
                attempt.path.mkdir(PRIVATE)
            except FileExistsError:
                number += 1
            else:
                attempt.launcher_log_path.parent.mkdir(PRIVATE)
                return attempt
