"""Keys that are right alone and wrong together, as the config's own checks find them and a reader tells them."""

from dataclasses import dataclass

# The error type under which a reader finds every Disagreement in the error's context, as `all`.
DISAGREEMENT = "disagreement"


@dataclass(frozen=True)
class Disagreement:
    """Keys, dotted (`data.sources.0.repeats`), the one to change first, and why and how."""

    keys: tuple[str, ...]
    sentence: str
