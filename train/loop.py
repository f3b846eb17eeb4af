"""The loop: for each step: micro-batches → clip → update → EMA → report → pictures → maybe checkpoint → maybe stop."""

import time
from collections.abc import Iterator

import torch

from configs.schema import RunConfig
from configs.solve.learning_rate import compute_learning_rate
from configs.solve.length import Length
from store.run.end import End
from store.run.run_dir import RunDir
from train.checkpoint.saver import Saver
from train.process_group import World
from train.reporting.metrics import MetricsWindow, MetricsWriter
from train.reporting.sample_images import SampleImages
from train.resilience.heartbeat import Heartbeat, Progress
from train.resilience.skipped import NonFinite, SkippedSteps
from train.resilience.stop_signal import StopSignal
from train.step import Trainer


def run_steps(
    config: RunConfig,
    run: RunDir,
    length: Length,
    steps: range,
    world: World,
    trainer: Trainer,
    skipped: SkippedSteps,
    micro_batches: Iterator[dict[str, torch.Tensor]],
    saver: Saver,
    painter: SampleImages | None,
    sinks: MetricsWriter | None,
    notice: StopSignal,
    heartbeat: Heartbeat,
) -> End:
    """Make `steps` in order; stop early where any rank was given notice. `sinks` is rank 0's alone."""
    if any(world.any_rank([notice.given])):  # it came while the ranks were loading
        return _stopped(saver, steps.start - 1, world, notice)
    if painter is not None and steps.start == 1:
        painter.draw(run, 0, sinks)  # the base model, to compare with
    progress, window = heartbeat.progress, MetricsWindow(world.device)
    batches = _watched(micro_batches, progress)
    for step in steps:
        rate = compute_learning_rate(config, step, length.steps)
        began = time.monotonic()
        try:
            result = trainer.step(step, rate, batches, saver.wait_for_copy)
            skipped.note(step, result)
        except NonFinite:
            saver.finish()
            raise
        except Exception as error:
            error.add_note(f"in step {step}")
            raise
        window.add(result)
        progress.step = step
        progress.longest_step = max(progress.longest_step, time.monotonic() - began)
        progress.now("reporting")

        if step % config.report_every_steps == 0 or step == length.steps:
            scalars = window.close(world, trainer.engine, length, step, rate) | saver.scalars()
            scalars["optimizer/skipped"] = float(skipped.total)
            if sinks is not None:
                sinks.scalars(step, scalars)

        if painter is not None and (step % painter.pictures.every_steps == 0 or step == length.steps):
            with window.paused():
                painter.draw(run, step, sinks)

        if asked := heartbeat.save_asked.is_set():
            heartbeat.save_asked.clear()
        stop = world.any_rank([notice.given])[0]
        force = stop or step == length.steps
        saver.after_step(step, force=force, requested=asked, skipped=skipped.in_a_row > 0)
        if stop and step < length.steps:
            return _stopped(saver, step, world, notice)
    return End("finished", length.steps, saver.newest_name)


def _stopped(saver: Saver, step: int, world: World, notice: StopSignal) -> End:
    """Every rank knows what reached any of them."""
    reasons = [reason for reason in world.gather(notice.reason) if reason is not None]
    return End("notice", step, saver.newest_name, reasons[0])


def _watched(micro_batches: Iterator[dict[str, torch.Tensor]], progress: Progress) -> Iterator[dict[str, torch.Tensor]]:
    """The same micro-batches; says which of the two takes long, getting them or their passes."""
    progress.now("waiting for samples")
    for micro_batch in micro_batches:
        progress.now("in a micro-batch's passes")
        yield micro_batch
        progress.now("waiting for samples")
