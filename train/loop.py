"""The loop: for each step: micro-batches → clip → update → EMA → report → maybe checkpoint → maybe stop."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from configs.solve.learning_rate import compute_learning_rate
from store.run.end import End
from train.checkpoint.saver import Saver
from train.context import RankContext
from train.progress import IN_PASSES, WAITING_FOR_OTHERS, Progress
from train.reporting.base import Reporter
from train.resilience.skipped import NonFinite
from train.step import Trainer
from train.step_totals import StepTotals


def run_steps(
    context: RankContext,
    steps: range,
    trainer: Trainer,
    micro_batches: Iterator[dict[str, torch.Tensor]],
    saver: Saver,
    reporters: Sequence[Reporter],
) -> End:
    """Make `steps` in order, or those up to which a notice reached any rank. All ranks call this together and return
    the same End; `micro_batches` yields this rank's, of all these steps one after the other."""
    progress, last_step = context.progress, context.length.steps
    if _has_any_rank_received_stop(context):  # while it was loading
        return _end_on_notice(context, steps.start - 1, saver)
    totals = StepTotals(context.world.device)
    if steps.start == 1:
        _report(reporters, 0, totals)
    watched = _watch(micro_batches, progress)
    for step in steps:
        with _failures_of_step(step, saver):
            learning_rate = compute_learning_rate(context.config, step, last_step)
            began = time.monotonic()
            result = trainer.step(step, learning_rate, watched, saver.wait_for_copy)
            totals.add(result, learning_rate)
            progress.record_step(step, time.monotonic() - began)
            progress.set_activity("reporting")
            _report(reporters, step, totals)

        progress.set_activity(f"{WAITING_FOR_OTHERS} to end the step")
        is_last = step == last_step
        stop = _has_any_rank_received_stop(context)
        requested = _take_save_request(context)
        saver.after_step(step, force=stop or is_last, requested=requested, skipped=trainer.engine.skipped)
        if stop and not is_last:
            return _end_on_notice(context, step, saver)
    return End("finished", last_step, saver.newest_name)


def _report(reporters: Sequence[Reporter], step: int, totals: StepTotals) -> None:
    for reporter in reporters:
        if reporter.due(step):
            with totals.paused():
                reporter.report(step, totals)


@contextmanager
def _failures_of_step(step: int, saver: Saver) -> Iterator[None]:
    """What fails in here names the step. Where all ranks fail together, the save in flight is brought to its end."""
    try:
        yield
    except NonFinite:
        saver.finish()
        raise
    except Exception as error:
        error.add_note(f"in step {step}")
        raise


def _has_any_rank_received_stop(context: RankContext) -> bool:
    return context.world.any_rank([context.stop.received])[0]


def _take_save_request(context: RankContext) -> bool:
    """Whether a person wants a checkpoint of this step; once per request, and on rank 0 alone."""
    requested = context.save_requested.is_set()
    if requested:
        context.save_requested.clear()
    return requested


def _end_on_notice(context: RankContext, step: int, saver: Saver) -> End:
    """Each rank knows what reached it; the first one's reason is told."""
    reasons = [reason for reason in context.world.gather(context.stop.reason) if reason is not None]
    return End("notice", step, saver.newest_name, reasons[0])


def _watch(micro_batches: Iterator[dict[str, torch.Tensor]], progress: Progress) -> Iterator[dict[str, torch.Tensor]]:
    """The same micro-batches; says which of the two takes long, getting them or their passes."""
    progress.set_activity("waiting for samples")
    for micro_batch in micro_batches:
        progress.set_activity(IN_PASSES)
        yield micro_batch
        progress.set_activity("waiting for samples")
