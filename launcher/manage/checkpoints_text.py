"""The answers of `lockstep checkpoints`, as text or JSON."""

import json
from dataclasses import asdict

from configs.solve.engine import name_sharding
from launcher.format import format_count, format_size
from launcher.manage.checkpoints import CheckpointInfo, compare_checkpoints, describe_checkpoints, prune_checkpoints
from store.checkpoint.checkpoints import list_quarantined
from store.run.run_dir import RunDir

SHOWN = 20  # tensors of a diff


def render_checkpoints(run: RunDir, *, verify: bool, as_json: bool) -> tuple[str, bool]:
    """The table, and whether nothing is wrong as far as anybody looked."""
    rows = describe_checkpoints(run, verify=verify)
    good = not any(row.problems for row in rows)
    if as_json:
        return json.dumps([asdict(row) for row in rows], indent=2), good
    lines = ["no checkpoints yet"]
    if rows:
        lines = [f"{'step':>10}  {'attempt':>7}  {'size':>10}  {'ranks':>5}  {'sharding':<8}  state"]
    lines += [_format_row(row) for row in rows]
    lines += [f"quarantined: {path}" for path in list_quarantined(run)]
    return "\n".join(lines), good


def _format_row(row: CheckpointInfo) -> str:
    """One line of the table; `?` is what an unreadable manifest does not tell."""
    size = "?" if row.size is None else format_size(row.size)
    ranks = "?" if row.world_size is None else row.world_size
    sharding = "?" if row.engine is None else name_sharding(row.zero)
    state = "not verified" if row.problems is None else "verified"
    if row.problems:
        state = row.problems[0]
    return f"{row.step:>10,}  {row.attempt:>7}  {size:>10}  {ranks:>5}  {sharding:<8}  {state}"


def render_pruned(run: RunDir, keep: int | None, *, as_json: bool) -> str:
    """The steps whose checkpoints were removed."""
    steps = [checkpoint.step for checkpoint in prune_checkpoints(run, keep)]
    if as_json:
        return json.dumps({"removed": steps})
    if not steps:
        return "no checkpoint was removed"
    return f"removed {format_count(len(steps), 'checkpoint')}, of step {', '.join(map(str, steps))}"


def render_differences(run: RunDir, first: int, second: int, *, as_json: bool) -> str:
    """The tensors that changed most between two steps."""
    differences = compare_checkpoints(run, first, second)
    if as_json:
        return json.dumps([asdict(difference) for difference in differences], indent=2)
    lines = [f"{format_count(len(differences), 'tensor')} differ between step {first} and step {second}"]
    for change in differences[:SHOWN]:
        sizes = f"{change.relative:9.2e} relative  {change.largest:9.2e} largest"
        lines.append(f"{sizes}  {change.kind:<10}  {change.name}")
    if len(differences) > SHOWN:
        lines.append(f"and {len(differences) - SHOWN} more (--json lists them all)")
    return "\n".join(lines)
