"""Whole tensors on rank 0 from the fragments that ranks hold, for tests to compare."""

import torch
import torch.distributed as dist


def read_values(engine, key: str) -> dict:
    """What this rank saves under `key`, by its fragments, in the host's memory."""
    values = {fragment: torch.empty(fragment.length) for fragment in engine.list_saved(key)}
    for fragment, out in values.items():
        engine.read(key, fragment, out)
    return values


def gather(world, fragments, values) -> dict[str, torch.Tensor] | None:
    """Flattened fp32 tensors by name on rank 0, None elsewhere."""
    mine = [(f.name, f.offset, value.detach().cpu().clone()) for f, value in zip(fragments, values, strict=True)]
    parts = [None] * world.size
    dist.all_gather_object(parts, mine, group=world.cpu_group)
    if not world.is_main_process:
        return None
    pieces: dict[str, list] = {}
    for name, offset, value in (piece for part in parts for piece in part):
        pieces.setdefault(name, []).append((offset, value))
    return {
        name: torch.cat([value for _, value in sorted(found, key=lambda p: p[0])]) for name, found in pieces.items()
    }
