"""The learning rate as a pure function of the step."""

import math

from configs.schema import RunConfig


def compute_learning_rate(config: RunConfig, step: int, total_steps: int) -> float:
    """The rate of the update that makes step `step` (1 … total_steps); step 0 is where warm-up starts.

    Warm-up rises by lr / warmup_steps per step and reaches lr at step warmup_steps. Linear and cosine then fall towards
    0 at the step after the last, so that the last step still learns.
    """
    if step < config.warmup_steps:
        return config.lr * step / config.warmup_steps
    if config.lr_schedule == "constant":
        return config.lr
    progress = (step - config.warmup_steps) / (total_steps + 1 - config.warmup_steps)
    if config.lr_schedule == "linear":
        return config.lr * (1 - progress)
    return config.lr * 0.5 * (1 + math.cos(math.pi * progress))
