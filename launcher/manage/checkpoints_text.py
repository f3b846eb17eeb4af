"""The answers of `lockstep checkpoints`, as text or JSON."""

import json
from dataclasses import asdict

from launcher.format import format_count, format_size
from launcher.manage import checkpoints
from store.checkpoint.checkpoints import list_quarantined
from store.run.run_dir import RunDir

SHOWN = 20  # tensors of a diff


def render_checkpoints(run: RunDir, *, verify: bool, as_json: bool) -> tuple[str, bool]:
    """The table, and whether nothing is wrong as far as anybody looked."""
    rows = checkpoints.describe_checkpoints(run, verify=verify)
    whole = not any(row.problems for row in rows)
    if as_json:
        return json.dumps([asdict(row) for row in rows], indent=2), whole
    lines = [f"{'step':>10}  {'attempt':>7}  {'size':>10}  {'ranks':>5}  {'ZeRO':>4}  state"]
    for row in rows:
        state = "not read" if row.problems is None else row.problems[0] if row.problems else "verified"
        numbers = (
            format_size(row.size) if row.size is not None else "?",
            row.world_size or "?",
            row.zero if row.size else "?",
        )
        lines.append(f"{row.step:>10,}  {row.attempt:>7}  {numbers[0]:>10}  {numbers[1]:>5}  {numbers[2]:>4}  {state}")
    lines += [f"kept aside: {path}" for path in list_quarantined(run)]
    return "\n".join(lines if rows else ["no checkpoints yet", *lines[1:]]), whole


def render_pruned(run: RunDir, keep: int | None, *, as_json: bool) -> str:
    gone = [checkpoint.step for checkpoint in checkpoints.prune_checkpoints(run, keep)]
    if as_json:
        return json.dumps({"removed": gone})
    return f"removed the checkpoints of {format_count(len(gone), 'step')}: {', '.join(map(str, gone)) or 'none'}"


def render_differences(run: RunDir, first: int, second: int, *, as_json: bool) -> str:
    found = checkpoints.compare_checkpoints(run, first, second)
    if as_json:
        return json.dumps([asdict(one) for one in found], indent=2)
    lines = [f"{format_count(len(found), 'tensor')} differ between step {first} and step {second}"]
    for one in found[:SHOWN]:
        lines.append(f"{one.relative:9.2e} relative  {one.largest:9.2e} largest  {one.kind:<10}  {one.name}")
    if len(found) > SHOWN:
        lines.append(f"and {len(found) - SHOWN} more (--json lists them all)")
    return "\n".join(lines)
