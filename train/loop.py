"""The loop: for each step: micro-batches → clip → update → EMA → report → pictures → maybe checkpoint → maybe stop."""

from collections.abc import Iterator

import torch

from configs.end import End
from configs.length import Length
from configs.lr import learning_rate
from configs.run_dir import RunDir
from configs.schema import RunConfig
from train.checkpoint import Saver
from train.distributed import World
from train.heartbeat import Heartbeat
from train.metrics import Sinks, Window
from train.notice import Notice
from train.pictures import Painter
from train.step import Trainer


def train(
    config: RunConfig,
    run: RunDir,
    length: Length,
    steps: range,
    world: World,
    trainer: Trainer,
    micro_batches: Iterator[dict[str, torch.Tensor]],
    saver: Saver,
    painter: Painter | None,
    sinks: Sinks | None,
    notice: Notice,
    heartbeat: Heartbeat,
) -> End:
    """Make `steps` in order; stop early where any rank was given notice. `sinks` is rank 0's alone."""
    if any(world.agree([notice.given])):  # it came while the ranks were loading
        return End("notice", steps.start - 1, notice.reason)
    if painter is not None and steps.start == 1:
        painter.draw(run, 0, sinks)  # the base model, to compare with
    window = Window(world.device)
    for step in steps:
        rate = learning_rate(config, step, length.steps)
        try:
            window.add(trainer.step(step, rate, micro_batches, saver.wait_for_copy))
        except Exception as error:
            error.add_note(f"in step {step}")
            raise
        heartbeat.step = step

        if step % config.report_every_steps == 0 or step == length.steps:
            scalars = window.close(world, trainer.engine, length, step, rate) | saver.scalars()
            if sinks is not None:
                sinks.scalars(step, scalars)

        if painter is not None and (step % painter.pictures.every_steps == 0 or step == length.steps):
            with window.paused():
                painter.draw(run, step, sinks)

        if asked := heartbeat.save_asked.is_set():
            heartbeat.save_asked.clear()
        if saver.boundary(step, notice=notice.given, asked=asked, last=step == length.steps) and step < length.steps:
            return End("notice", step, notice.reason)
    return End("finished", length.steps)
