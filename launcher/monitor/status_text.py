"""The answer of `lockstep status`, as a table or JSON."""

import json
import math
from collections import Counter
from dataclasses import asdict

from configs.scalars import format_time
from launcher.format import format_count
from launcher.monitor.status import RunStatus

_HEAD = ("run", "state", "attempt", "step", "loss", "ETA", "time left", "reported by", "detail")


def render_statuses(statuses: list[RunStatus]) -> str:
    """The table; below it how many there are of each state, if there are several."""
    rows = [_HEAD, *(_cells(row) for row in statuses)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        padded = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append("  ".join(padded).rstrip())
    if len(statuses) > 1:
        counts = Counter(row.state for row in statuses)
        listed = ", ".join(f"{count:,} {state}" for state, count in counts.items())
        lines.append(f"{format_count(len(statuses), 'run')}: {listed}")
    return "\n".join(lines)


def statuses_to_json(statuses: list[RunStatus]) -> str:
    """A loss that is no number is null, for JSON has no word for it."""
    rows = [asdict(row) for row in statuses]
    for row in rows:
        if row["loss"] is not None and not math.isfinite(row["loss"]):
            row["loss"] = None
    return json.dumps(rows, indent=2, ensure_ascii=False)


def format_steps(row: RunStatus) -> str:
    """`40/100`, or nothing where no attempt has begun."""
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
        _format_seconds(row.seconds_to_end),
        _format_seconds(row.seconds_to_wall),
        row.source,
        row.detail,
    )


def _format_seconds(seconds: float | None) -> str:
    return "" if seconds is None else format_time(round(seconds))
