"""How fast one rank encoded, for whoever plans the next time."""

from dataclasses import dataclass

from store.run.records import REMOVE, Record


@dataclass(frozen=True)
class EncodingRate(Record):
    """Of the newest time."""

    CURE = REMOVE

    per_second: float  # encodings of one rank
    device: str  # cpu, or the GPU's name
