"""The answer of `lockstep status`, as a table or JSON."""

import json
import math
from collections import Counter
from dataclasses import asdict

from configs.scalars import format_time
from launcher.monitor.status import RunStatus

_HEAD = ("run", "state", "attempt", "step", "loss", "to end", "to wall", "source", "why")


def render_statuses(found: list[RunStatus]) -> str:
    lines = [_HEAD, *(_cells(row) for row in found)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(_HEAD))]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    if len(found) > 1:
        counts = Counter(row.state for row in found)
        text.append(f"{len(found):,} runs: {', '.join(f'{count:,} {state}' for state, count in counts.items())}")
    return "\n".join(text)


def statuses_to_json(found: list[RunStatus]) -> str:
    """A loss that is no number is null, for JSON has no word for it."""
    plain = [asdict(row) for row in found]
    for row in plain:
        row["loss"] = row["loss"] if row["loss"] is not None and math.isfinite(row["loss"]) else None
    return json.dumps(plain, indent=2, ensure_ascii=False)


def format_steps(row: RunStatus) -> str:
    if row.steps is None:
        return ""
    return f"{row.step or 0:,}/{row.steps:,}"


def _cells(row: RunStatus) -> tuple[str, ...]:
    return (
        row.name,
        row.state,
        str(row.attempt or ""),
        format_steps(row),
        "" if row.loss is None else f"{row.loss:.5f}",
        _time(row.seconds_to_end),
        _time(row.seconds_to_wall),
        row.source,
        row.detail,
    )


def _time(seconds: float | None) -> str:
    return "" if seconds is None else format_time(round(seconds))
