"""What a person sees of an attempt while it runs: a bar on a terminal, plain lines anywhere else."""

import json
import sys
from pathlib import Path
from typing import Any, TextIO

from store.run.attempt_plan import AttemptPlan
from store.run.records import FailureReport
from store.run.run_dir import Attempt


class LiveLog:
    """Shows rank 0's log as it grows; on a terminal its `step …` lines become a bar."""

    def __init__(self, attempt: Attempt, out: TextIO = sys.stdout):
        self.log, self.metrics, self.failure = attempt.log_path(0), attempt.metrics_path, attempt.failure_path(0)
        self.read = {self.log: 0, self.metrics: 0}  # bytes that were shown
        self.out = out
        self.bar = _Bar(AttemptPlan.read(attempt.plan_path).total_steps) if out.isatty() else None

    def show_new(self) -> None:
        """Show what the rank has printed since the last call."""
        for line in self._new_lines(self.log):
            if self.bar is None or not line.startswith("step "):
                self.say(line)
        if self.bar is not None:
            for line in self._new_lines(self.metrics):
                self.bar.update(json.loads(line))

    def say(self, text: str) -> None:
        """Print a line of the launcher's own, above the bar where there is one."""
        if self.bar is not None:
            self.bar.print(text)
        else:
            print(text, file=self.out, flush=True)

    def finish(self) -> None:
        """Show the rest, and leave the terminal as it was."""
        self.show_new()
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def _new_lines(self, path: Path) -> list[str]:
        """Whole lines that were not there before."""
        if not path.exists():
            return []
        start = self.read[path]
        with open(path, "rb") as file:
            file.seek(start)
            content = file.read()
        report = FailureReport.read_if_written(self.failure) if path == self.log else None
        if report is not None:  # how a run failed is told once, at its end and with the first cause
            content = content[: max(0, report.log_size - start)]
        whole_lines = content[: content.rfind(b"\n") + 1]
        self.read[path] = start + len(whole_lines)
        return whole_lines.decode(errors="replace").splitlines()


class _Bar:
    def __init__(self, steps: int):
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("step"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[loss]}"))
        self.progress = Progress(*columns, TimeRemainingColumn())
        self.task = self.progress.add_task("training", total=steps, loss="starting")
        self.progress.start()

    def update(self, scalars: dict[str, Any]) -> None:
        loss, speed = scalars["loss/train"], scalars["throughput/samples_per_sec"]
        shown = "not finite" if loss is None else f"{loss:.4f}"
        self.progress.update(self.task, completed=scalars["step"], loss=f"loss {shown}  {speed:.1f} samples/s")

    def print(self, text: str) -> None:
        self.progress.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        self.progress.stop()
