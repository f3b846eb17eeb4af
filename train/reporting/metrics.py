"""What a run reports: one line of metrics.jsonl, the same scalars in TensorBoard, one line of text. Watches only."""

import json
import math
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from configs.scalars import format_time
from configs.solve.length import Length
from store.run.run_dir import Attempt, RunDir, open_to_append, write_atomic
from train.engines.base import Engine
from train.process_group import World
from train.step import StepResult


class MetricsWindow:
    """The steps since the last report, on one rank. The loss is the last step's own: a curve must not show where
    an attempt ended; it stays on the device, so that a step does not wait for it."""

    def __init__(self, device: torch.device):
        self.device = device
        self.restart()

    def restart(self) -> None:
        self.steps, self.data_wait = 0, 0.0
        self.loss = torch.zeros((), device=self.device)
        self.began = time.perf_counter()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time in here is not time spent training."""
        left = time.perf_counter()
        yield
        self.began += time.perf_counter() - left

    def add(self, result: StepResult) -> None:
        self.steps += 1
        self.data_wait += result.data_wait
        self.loss = result.loss

    def close(self, world: World, engine: Engine, length: Length, step: int, rate: float) -> dict[str, float]:
        """The scalars after `step`, the same on every rank, and a fresh window."""
        loss = self.loss.item()  # waits for the device, so the clock is read after it
        seconds = time.perf_counter() - self.began
        mean_loss = world.sum([loss])[0] / world.size
        seconds, waited, memory = world.max([seconds, self.data_wait, _peak_memory(self.device)])
        scalars = {
            "loss/train": mean_loss,
            "lr-AdamW/group0": rate,
            "grad_norm": engine.gradient_norm(),
            "throughput/samples_per_sec": length.batch * self.steps / seconds,
            "time/step_s": seconds / self.steps,
            "time/data_wait_pct": 100 * waited / seconds,
            "progress/epoch": length.epochs_after(step) or 0.0,
            "progress/samples_seen": float(step * length.batch),
            "memory/peak_gib": memory,
        }
        self.restart()
        return scalars


class MetricsWriter:
    """Where rank 0 puts scalars and pictures: the attempt's and the run's metrics.jsonl, TensorBoard, the log."""

    def __init__(self, run: RunDir, attempt: Attempt, first_step: int, length: Length):
        from torch.utils.tensorboard import SummaryWriter

        self.length, self.lost = length, 0
        _drop_rolled_back(run.metrics, first_step)
        paths = (attempt.metrics, run.metrics)
        self.files = [open(open_to_append(path), "a", encoding="utf-8") for path in paths]  # noqa: SIM115
        # purge_step from the first writer on: only then does TensorBoard drop the steps that a later attempt repeats
        # (a run from the start draws its step-0 pictures again, too)
        purge_step = first_step if first_step > 1 else 0
        self.board = SummaryWriter(str(run.tensorboard), purge_step=purge_step, flush_secs=10)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        finite = {tag: value if math.isfinite(value) else None for tag, value in values.items()}  # JSON has no NaN
        line = json.dumps({"step": step, "time": time.time(), **finite}, allow_nan=False)
        for file in self.files:
            with self.survive_disk_errors():
                file.write(line + "\n")
                file.flush()
        with self.survive_disk_errors():
            for tag, value in values.items():
                self.board.add_scalar(tag, value, step)
        left = format_time(round((self.length.steps - step) * values["time/step_s"]))
        print(
            f"step {step}/{self.length.steps}  epoch {values['progress/epoch']:.2f}  loss {values['loss/train']:.5f}  "
            f"lr {values['lr-AdamW/group0']:.3g}  {values['throughput/samples_per_sec']:.1f} samples/s  {left} left",
            flush=True,
        )

    def picture(self, step: int, tag: str, path: Path, pixels: Any) -> None:
        """`pixels`: uint8, (height, width, 3); to `path` and to TensorBoard."""
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
        """What only watches does not end a run: a full disk costs its lines and pictures, with an alarm in the log."""
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


def _peak_memory(device: torch.device) -> float:
    """Most memory this rank has held, in GiB: the device's, or on a CPU the process's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
