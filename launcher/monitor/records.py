"""What one run's folder says of it, read cheaply: its newest attempt only, and of long files only the end."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.errors import UserError
from launcher.backend import SubmittedJob, read_submitted_job
from store.run.attempt_plan import AttemptPlan
from store.run.end import End
from store.run.records import Allocation, HeartbeatRecord, read_heartbeat
from store.run.run_dir import Attempt, RunDir

_TAIL = 4096  # bytes that hold the last line of metrics.jsonl


@dataclass(frozen=True)
class RunRecords:
    """A run as its folder has it, before SLURM is asked."""

    run: RunDir
    newest: Attempt | None = None
    end: End | None = None  # of the newest attempt
    total_steps: int | None = None
    metrics: dict[str, Any] | None = None  # the last line
    beat: HeartbeatRecord | None = None  # rank 0's
    job: SubmittedJob | None = None
    allocation: Allocation | None = None  # of an attempt that SLURM started

    @property
    def waits_for_its_first(self) -> bool:
        """Whether the newest job has begun no attempt yet."""
        return self.job is not None and (self.newest is None or self.newest.number <= self.job.after_attempt)

    @property
    def settled(self) -> bool:
        """Whether the end record is the last word, so that nobody else need be asked."""
        return self.end is not None and self.end.is_final and not self.waits_for_its_first

    @property
    def local(self) -> bool:
        """Whether the newest attempt was started without SLURM."""
        return self.newest is not None and self.allocation is None

    @property
    def asks_for(self) -> tuple[str, str] | None:
        """The backend that has to be asked, and the job that it is asked about; none where the end record tells."""
        if self.settled:
            return None
        if self.job is not None and (self.waits_for_its_first or not self.local):
            return ("slurm", self.job.id) if self.job.id is not None else None
        return ("local", str(self.run.path)) if self.local and self.end is None else None

    @property
    def step(self) -> int | None:
        """Steps that are done, as the newest witness has it."""
        if self.end is not None:
            return self.end.step
        if self.beat is not None and self.beat.step:
            return self.beat.step
        return int(self.metrics["step"]) if self.metrics else None

    @property
    def seconds_left(self) -> float | None:
        """Time that training to the end still takes, at the speed of the last report."""
        if self.metrics is None or self.total_steps is None:
            return None
        return max(0, self.total_steps - (self.step or 0)) * float(self.metrics["time/step_s"])


def read_records(run: RunDir) -> RunRecords:
    """Raises LockstepError, OSError, ValueError, KeyError or TypeError where a file cannot be read."""
    job = read_submitted_job(run)
    attempts = run.attempts()
    if not attempts:
        return RunRecords(run, job=job)
    newest, end = attempts[-1], End.read_if_written(attempts[-1].end_path)
    plan = AttemptPlan.read(newest.plan_path)
    return RunRecords(
        run,
        newest,
        end,
        plan.total_steps,
        read_last_line(run.metrics_path),
        read_heartbeat(newest.heartbeat_path(0)) if end is None else None,
        job,
        Allocation.read_if_written(newest.allocation_path),
    )


def read_last_line(path: Path) -> dict[str, Any] | None:
    """The last whole line of a file of JSON lines, without the rest of it; None where there is none."""
    if not path.is_file():
        return None
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        for length in (_TAIL, 16 * _TAIL):
            file.seek(max(0, size - length))
            lines = file.read().split(b"\n")[:-1]  # what follows the last newline is half a line, or nothing
            first_is_whole = length >= size
            if len(lines) > 1 or (lines and first_is_whole):
                record: dict[str, Any] = json.loads(lines[-1])
                return record
    return None


def find_runs(paths: tuple[str, ...]) -> list[RunDir]:
    """Every run that is named, and every run in a folder that is. Raises UserError for a path without any."""
    runs: dict[Path, RunDir] = {}
    for path in paths or ("runs",):
        folder = Path(path).absolute()
        candidates = [folder]
        if folder.is_dir() and not RunDir(folder).config_path.is_file():
            candidates = sorted(Path(entry.path) for entry in os.scandir(folder))
        inside = {candidate: RunDir(candidate) for candidate in candidates if RunDir(candidate).config_path.is_file()}
        if not inside:
            raise UserError(f"{path}: contains no runs; name a run's folder, or a folder of runs")
        runs |= inside
    return list(runs.values())
