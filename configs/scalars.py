"""Values people write as text: names, SLURM times, node ranges. Each parses one spelling and writes it back."""

import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, PlainSerializer, PlainValidator, WithJsonSchema


def _check_run_id(value: Any) -> Any:
    if isinstance(value, str) and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", value):
        raise ValueError(
            "must start with a letter or digit and hold only letters, digits, '.', '_' and '-' (at most 100)"
        )
    return value


RunId = Annotated[str, BeforeValidator(_check_run_id)]


def _check_hub_id(value: Any) -> Any:
    if isinstance(value, str) and not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", value):
        raise ValueError("must be a data set's id on the hub, owner/name")
    return value


HubId = Annotated[str, BeforeValidator(_check_hub_id)]

_TIME = re.compile(r"(?:(?P<d>\d+)-)?(?P<h>\d+):(?P<m>[0-5]\d):(?P<s>[0-5]\d)")


def parse_time(value: Any) -> int:
    """`12:00:00` or `2-12:00:00` to seconds. Bare numbers and `12:30` are refused: SLURM reads them as minutes."""
    if isinstance(value, str) and (match := _TIME.fullmatch(value)):
        days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
        if total := ((days * 24 + hours) * 60 + minutes) * 60 + seconds:
            return total
    raise ValueError("must be a time longer than zero, written HH:MM:SS or D-HH:MM:SS, such as 12:00:00")


def format_time(seconds: int) -> str:
    """Seconds to `HH:MM:SS`, or `D-HH:MM:SS` from one day on."""
    days, rest = divmod(int(seconds), 86_400)
    clock = f"{rest // 3600:02d}:{rest % 3600 // 60:02d}:{rest % 60:02d}"
    return f"{days}-{clock}" if days else clock


TimeLimit = Annotated[
    int,
    BeforeValidator(parse_time),
    PlainSerializer(format_time, return_type=str),
    WithJsonSchema({"type": "string", "pattern": r"^(\d+-)?\d+:[0-5]\d:[0-5]\d$"}),
]


@dataclass(frozen=True)
class NodeRange:
    """How many nodes a run may have: `4` is low = high = 4, `2-8` any count from 2 to 8."""

    low: int
    high: int

    @classmethod
    def parse(cls, value: Any) -> "NodeRange":
        if isinstance(value, cls):
            return value
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return cls(value, value)
        if isinstance(value, str) and (match := re.fullmatch(r"([1-9]\d*)(?:-([1-9]\d*))?", value)):
            low, high = int(match[1]), int(match[2] or match[1])
            if low <= high:
                return cls(low, high)
        raise ValueError("must be a node count such as 4, or a range such as 2-8")

    def __str__(self) -> str:
        return str(self.low) if self.low == self.high else f"{self.low}-{self.high}"


def _node_range_json(nodes: NodeRange) -> int | str:
    return nodes.low if nodes.low == nodes.high else str(nodes)


Nodes = Annotated[
    NodeRange,
    BeforeValidator(NodeRange.parse),
    PlainSerializer(_node_range_json, return_type=int | str),
    WithJsonSchema(
        {"anyOf": [{"type": "integer", "minimum": 1}, {"type": "string", "pattern": r"^[1-9]\d*(-[1-9]\d*)?$"}]}
    ),
]


def parse_micro_batch(value: Any) -> int | Literal["auto"]:
    """A whole number of at least 1, or `auto`."""
    if value == "auto":
        return "auto"
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
        return value
    raise ValueError("must be a whole number of at least 1, or auto")


MicroBatch = Annotated[
    int | Literal["auto"],
    PlainValidator(parse_micro_batch),
    WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 1}, {"const": "auto"}]}),
]


def _check_colour(value: Any) -> Any:
    if isinstance(value, str) and value != "white" and not _is_opaque_colour(value):
        raise ValueError('must be a colour that hides what is behind it, by its name or as "#rrggbb" in quotes')
    return value


def _is_opaque_colour(text: str) -> bool:
    from PIL import ImageColor  # takes as long to import as the rest of a short command

    try:
        return len(ImageColor.getrgb(text)) == 3
    except ValueError:
        return False


Colour = Annotated[str, BeforeValidator(_check_colour)]  # as Pillow's ImageColor reads it
