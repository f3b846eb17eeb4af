"""Rank 0's files of what it reports: metrics.jsonl of the attempt and of the run, TensorBoard's events, and PNGs.

TensorBoard sorts groups of tags by name, a group being what comes before the slash, and opens the first two: the loss,
then learning rate and gradient norm. A new tag's group decides where it is shown; counters of checkpoints come last.
"""

import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from store.files import open_to_append, write_atomic
from store.run.run_dir import Attempt, RunDir

# What tags were called when `checkpoint` was the first group that TensorBoard showed. A run that began so goes on so.
FORMER_TAGS = {
    "optimizer/lr": "lr-AdamW/group0",
    "optimizer/pre_clip_grad_norm": "grad_norm",
    "totals/epochs": "progress/epoch",
    "totals/samples_seen": "progress/samples_seen",
    "usage/peak_memory_gib": "memory/peak_gib",
    "writes/failed_checkpoints": "checkpoint/failed",
    "writes/newest_checkpoint_step": "checkpoint/newest_step",
}


class MetricsWriter:
    """Continues a run's curves from `first_step` on. What it writes only watches, so a full disk ends nothing."""

    def __init__(self, run: RunDir, attempt: Attempt, first_step: int):
        from torch.utils.tensorboard import SummaryWriter

        self.lost = 0  # writes that failed
        _drop_rolled_back(run.metrics_path, first_step)
        self.former_tags = FORMER_TAGS if _began_with_former_tags(run.metrics_path) else {}
        paths = (attempt.metrics_path, run.metrics_path)
        self.files = [open(open_to_append(path), "a", encoding="utf-8") for path in paths]  # noqa: SIM115
        # purge_step from the first writer on: only then does TensorBoard drop the steps that a later attempt repeats
        # (a run from the start draws its step-0 pictures again, too)
        purge_step = first_step if first_step > 1 else 0
        self.board = SummaryWriter(str(_events_folder(run)), purge_step=purge_step, flush_secs=10)

    def write_scalars(self, step: int, scalars: dict[str, float]) -> None:
        """One line of metrics.jsonl, and a point of each curve; `scalars` by tag."""
        scalars = {self.former_tags.get(tag, tag): value for tag, value in scalars.items()}
        finite = {tag: value if math.isfinite(value) else None for tag, value in scalars.items()}  # JSON has no NaN
        line = json.dumps({"step": step, "time": time.time(), **finite}, allow_nan=False)
        for file in self.files:
            with self.survive_disk_errors():
                file.write(line + "\n")
                file.flush()
        with self.survive_disk_errors():
            for tag, value in scalars.items():
                self.board.add_scalar(tag, value, step)

    def write_image(self, step: int, tag: str, path: Path, pixels: np.ndarray) -> None:
        """`pixels`: uint8, (height, width, 3); to `path` and, as `tag`, to TensorBoard."""
        with self.survive_disk_errors():
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
            self.board.add_image(tag, pixels, step, dataformats="HWC")

    def close(self) -> None:
        for close in (self.board.close, *(file.close for file in self.files)):
            with self.survive_disk_errors():
                close()

    @contextmanager
    def survive_disk_errors(self) -> Iterator[None]:
        """A full disk costs lines and pictures, with an alarm in the log."""
        try:
            yield
        except OSError as error:
            self.lost += 1
            if self.lost == 1:
                print(f"ALARM: metrics and pictures are being lost: {error}", flush=True)


def _drop_rolled_back(metrics: Path, first_step: int) -> None:
    """Keep of the run's metrics only the steps before `first_step`: the others will be made again.

    A full disk may have left half a line at the end, which is dropped too.
    """
    if metrics.is_file():
        lines = [line for line in metrics.read_text().splitlines(keepends=True) if line.endswith("\n")]
        write_atomic(metrics, "".join(line for line in lines if json.loads(line)["step"] < first_step))


def _began_with_former_tags(metrics: Path) -> bool:
    """As its first line has it: one run has one name for each of its curves."""
    if not metrics.is_file():
        return False
    with open(metrics, encoding="utf-8") as file:
        first_line = file.readline()
    return bool(first_line) and not json.loads(first_line).keys().isdisjoint(FORMER_TAGS.values())


def _events_folder(run: RunDir) -> Path:
    """TensorBoard calls a run by its events' folder. A new run's bears its name; an older run's curves go on where they
    began: in `tensorboard/` itself, or in a folder with the name that the run had before it was moved."""
    first = min(run.tensorboard_path.rglob("events.out.tfevents.*"), default=None)
    return run.tensorboard_path / run.path.name if first is None else first.parent
