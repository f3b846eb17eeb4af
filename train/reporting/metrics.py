"""The scalars of a run: one line of metrics.jsonl, one point of each curve in TensorBoard, one line of the log."""

import resource

import torch

from configs.scalars import format_time
from train.checkpoint.saver import Saver
from train.context import RankContext
from train.engines.base import Engine
from train.reporting.bad_samples import BadSamples
from train.reporting.metrics_writer import MetricsWriter
from train.resilience.skipped import SkippedSteps
from train.step_totals import StepTotals


class Metrics:
    """Reports every `report_every_steps` and after the last step; `writer` is rank 0's alone."""

    def __init__(
        self,
        context: RankContext,
        engine: Engine,
        saver: Saver,
        skipped: SkippedSteps,
        bad_samples: BadSamples,
        writer: MetricsWriter | None,
    ):
        self.context, self.engine, self.saver, self.writer = context, engine, saver, writer
        self.skipped, self.bad_samples = skipped, bad_samples
        self.steps, self.seconds, self.data_wait = 0, 0.0, 0.0  # the totals, as they were at the newest report

    def due(self, step: int) -> bool:
        is_last = step == self.context.length.steps
        return step > 0 and (is_last or step % self.context.config.report_every_steps == 0)

    def report(self, step: int, totals: StepTotals) -> None:
        scalars = self.collect(step, totals)
        if self.writer is not None:
            self.writer.write_scalars(step, scalars)
            print(self._describe(step, scalars), flush=True)

    def collect(self, step: int, totals: StepTotals) -> dict[str, float]:
        """The scalars after `step` by tag, the same on every rank. Times are of the steps since the newest report.

        The loss is the last step's own: a curve must not show where an attempt ended.
        """
        world, length = self.context.world, self.context.length
        assert totals.last is not None
        steps = totals.steps - self.steps
        seconds, data_wait, memory = world.max(
            [totals.seconds - self.seconds, totals.data_wait - self.data_wait, _peak_memory(totals.device)]
        )
        self.steps, self.seconds, self.data_wait = totals.steps, totals.seconds, totals.data_wait
        return {
            "loss/train": world.sum([totals.last.loss.item()])[0] / world.size,
            "optimizer/lr": totals.learning_rate,
            "optimizer/pre_clip_grad_norm": self.engine.gradient_norm(),
            "optimizer/skipped": float(self.skipped.total),
            "throughput/samples_per_sec": length.batch * steps / seconds,
            "time/step_s": seconds / steps,
            "time/data_wait_pct": 100 * data_wait / seconds,
            "totals/bad_samples": float(self.bad_samples.count()),
            "totals/epochs": length.epochs_after(step) or 0.0,
            "totals/samples_seen": float(step * length.batch),
            "usage/peak_memory_gib": memory,
            "writes/failed_checkpoints": float(self.saver.failures),
            "writes/newest_checkpoint_step": float(self.saver.newest.step if self.saver.newest else 0),
        }

    def _describe(self, step: int, scalars: dict[str, float]) -> str:
        """As a line of the log."""
        last = self.context.length.steps
        left = format_time(round((last - step) * scalars["time/step_s"]))
        return (
            f"step {step}/{last}  epoch {scalars['totals/epochs']:.2f}  loss {scalars['loss/train']:.5f}  "
            f"lr {scalars['optimizer/lr']:.3g}  {scalars['throughput/samples_per_sec']:.1f} samples/s  {left} left"
        )


def _peak_memory(device: torch.device) -> float:
    """Most memory this rank has held, in GiB: the device's, or on a CPU the process's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
