"""When to save and what to keep: small pure policies over steps and seconds."""

from configs.schema import CheckpointConfig


def should_save(policy: CheckpointConfig, step: int, seconds: float) -> bool:
    """Whether to save after `step`, `seconds` after the last save: by steps or by time, whichever comes first."""
    by_steps = policy.every_steps is not None and step % policy.every_steps == 0
    by_time = policy.every_minutes is not None and seconds >= 60 * policy.every_minutes
    return by_steps or by_time


def steps_to_prune(policy: CheckpointConfig, steps: list[int]) -> list[int]:
    """The steps, of those that are there, whose checkpoints may go: never the newest, nor one every `keep_every`."""
    newest = set(sorted(steps)[-policy.keep :])

    def is_kept(step: int) -> bool:
        return step in newest or (policy.keep_every is not None and step % policy.keep_every == 0)

    return [step for step in sorted(steps) if not is_kept(step)]
