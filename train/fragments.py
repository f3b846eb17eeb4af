"""Which pieces of the fp32 weights this rank owns. The only module that touches DeepSpeed's private attributes.

Every ZeRO stage comes down to named 1-D pieces [offset, offset + length) of flattened parameters, so whatever is built
on fragments (EMA, export) knows no stage and no world size.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from deepspeed import DeepSpeedEngine


@dataclass(frozen=True)
class Fragment:
    """One piece of one parameter; `master` is DeepSpeed's own fp32 storage, 1-D: writing to it changes the weight."""

    name: str
    offset: int
    master: torch.Tensor


def fragments_of(engine: DeepSpeedEngine) -> list[Fragment]:
    """The fragments of this rank. Over all ranks they cover every trained parameter exactly once."""
    stage = engine.zero_optimization_stage()
    find = {0: _replicated, 1: _linked, 2: _linked, 3: _partitioned}[stage]
    return [fragment for fragment in find(engine) if fragment.master.numel()]


def set_masters(fragments: list[Fragment], weights: dict[str, torch.Tensor]) -> None:
    """Write whole fp32 `weights` into the masters: DeepSpeed made those from weights rounded to bf16 or fp16."""
    with torch.no_grad():
        for fragment in fragments:
            if fragment.name in weights:
                whole = weights[fragment.name].reshape(-1)
                fragment.master.copy_(whole[fragment.offset : fragment.offset + fragment.master.numel()])


def _trained(engine: DeepSpeedEngine) -> Iterator[tuple[str, torch.nn.Parameter]]:
    return ((name, p) for name, p in engine.module.named_parameters() if p.requires_grad)


def _replicated(engine: DeepSpeedEngine) -> Iterator[Fragment]:
    """ZeRO 0: every rank holds everything, so we cut all parameters, end to end, into equal shares."""
    total = sum(p.numel() for _, p in _trained(engine))
    share = -(-total // engine.world_size)
    first, last = engine.global_rank * share, (engine.global_rank + 1) * share
    start = 0
    for name, p in _trained(engine):
        low, high = max(first - start, 0), min(last - start, p.numel())
        if low < high:
            yield Fragment(name, low, p.data.view(-1)[low:high])
        start += p.numel()


def _linked(engine: DeepSpeedEngine) -> Iterator[Fragment]:
    """ZeRO 1 and 2: DeepSpeed links each low-precision parameter to the part of it in this rank's flat partition."""
    for name, p in _trained(engine):
        if p._hp_mapping is not None:
            yield Fragment(name, p._hp_mapping.lp_fragment_address.start, p._hp_mapping.get_hp_fragment())


def _partitioned(engine: DeepSpeedEngine) -> Iterator[Fragment]:
    """ZeRO 3: each parameter is cut into equal shares, the last ones padded; the padding is not ours."""
    optimizer = engine.optimizer
    for name, p in _trained(engine):
        group, start, share = optimizer.grad_position[optimizer.get_param_id(p)]
        offset = share * engine.global_rank
        length = max(0, min(share, p.ds_numel - offset))
        yield Fragment(name, offset, optimizer.fp32_partitioned_groups_flat[group].data.narrow(0, start, length))
