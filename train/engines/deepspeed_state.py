"""Which pieces of the training state this rank owns. The only module that touches DeepSpeed's private attributes
(zero3_linear replaces one of its functions).

Every ZeRO stage comes down to named 1-D pieces [offset, offset + length) of flattened parameters, so whatever is built
on fragments (EMA, checkpoints, export) knows no stage and no world size. Known good: DeepSpeed 0.19.8 (`self_test` runs
at every start and says so where another version keeps its state elsewhere).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import deepspeed
import torch
from deepspeed import DeepSpeedEngine

from configs.errors import LockstepError

KNOWN_GOOD = ("0.19.8",)
MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Fragment:
    """Elements [offset, offset + length) of parameter `name`: those from `start` on in `owner`, which AdamW updates."""

    name: str
    offset: int
    length: int
    owner: torch.Tensor
    start: int

    @property
    def master(self) -> torch.Tensor:
        """DeepSpeed's own fp32 storage, 1-D: writing to it changes the weight."""
        return self._piece(self.owner.data)

    def moment(self, optimizer: torch.optim.Optimizer, key: str) -> torch.Tensor:
        """AdamW's `exp_avg` or `exp_avg_sq` of these elements, 1-D, its own storage."""
        return self._piece(optimizer.state[self.owner][key])

    def _piece(self, whole: torch.Tensor) -> torch.Tensor:
        return whole.view(-1).narrow(0, self.start, self.length)


def owned_fragments(engine: DeepSpeedEngine) -> list[Fragment]:
    """What this rank answers for. Over all ranks these cover every trained parameter exactly once."""
    held = held_fragments(engine)
    return _share(held, engine) if engine.zero_optimization_stage() == 0 else held


def held_fragments(engine: DeepSpeedEngine) -> list[Fragment]:
    """What this rank holds and a load must fill: at ZeRO 0 everything, else what it owns."""
    find = {0: _whole, 1: _linked, 2: _linked, 3: _partitioned}[engine.zero_optimization_stage()]
    return [fragment for fragment in find(engine) if fragment.length]


@torch.no_grad()
def set_masters(fragments: list[Fragment], weights: dict[str, torch.Tensor]) -> None:
    """Write whole fp32 `weights` into the masters: DeepSpeed made those from weights rounded to bf16 or fp16."""
    for fragment in fragments:
        if fragment.name in weights:
            whole = weights[fragment.name].reshape(-1)
            fragment.master.copy_(whole[fragment.offset : fragment.offset + fragment.length])


def ensure_moments(engine: DeepSpeedEngine, fragments: list[Fragment]) -> None:
    """AdamW makes its state at its first step; a save before that, or a load, needs it now."""
    optimizer = engine.basic_optimizer
    for owner in _owners(fragments):
        if not optimizer.state.get(owner):
            fused = optimizer.defaults.get("fused")
            step = torch.zeros((), dtype=torch.float32, device=owner.device if fused else "cpu")
            optimizer.state[owner] = {"step": step} | {key: torch.zeros_like(owner.data) for key in MOMENTS}


def optimizer_step(engine: DeepSpeedEngine, fragments: list[Fragment]) -> int:
    """Updates that AdamW has applied. `param_groups` is empty under ZeRO 3 between steps, so its state is asked."""
    return int(engine.basic_optimizer.state[fragments[0].owner]["step"])


def set_counters(engine: DeepSpeedEngine, fragments: list[Fragment], *, step: int, applied: int) -> None:
    """Tell AdamW and the engine that `step` steps are done, `applied` of them updates."""
    for owner in _owners(fragments):
        engine.basic_optimizer.state[owner]["step"].fill_(applied)
    engine.global_steps = step
    engine.global_samples = step * engine.train_batch_size()
    engine.skipped_steps = step - applied
    engine.micro_steps = step * engine.gradient_accumulation_steps()


_SCALER = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


def loss_scaler(engine: DeepSpeedEngine) -> dict[str, float] | None:
    """The dynamic loss scale of fp16 and its counters."""
    scaler = getattr(engine.optimizer, "loss_scaler", None)
    return {key: getattr(scaler, key) for key in _SCALER} if getattr(scaler, "dynamic", False) else None


def set_loss_scaler(engine: DeepSpeedEngine, state: dict[str, float] | None) -> None:
    for key, value in (state or {}).items():
        setattr(engine.optimizer.loss_scaler, key, value)


def keep_smallest_loss_scale(engine: DeepSpeedEngine) -> None:
    """fp16: an overflow at the smallest loss scale is a skipped step like any other; DeepSpeed would raise."""
    if loss_scaler(engine) is not None:
        engine.optimizer.loss_scaler.raise_error_at_min_scale = False


@torch.no_grad()
def masters_to_parameters(engine: DeepSpeedEngine) -> None:
    """Make the weights that forward passes see again from the masters, on every rank. A collective."""
    stage, optimizer = engine.zero_optimization_stage(), engine.optimizer
    if stage in (1, 2):
        optimizer.update_lp_params()
    elif stage == 3:
        optimizer.checkpoint_event_prologue()  # hands back what passes have gathered
        for group in range(len(optimizer.fp16_partitioned_groups_flat)):
            optimizer._reassign_or_swap_out_partitioned_parameters(group)
        optimizer.checkpoint_event_epilogue()  # gathers the small parameters that stay whole


def clip_with(engine: DeepSpeedEngine, clip: Callable[[], None]) -> None:
    """ZeRO 0: let `clip` take the place of DeepSpeed's own clipping."""
    engine.clip_fp32_gradients = clip


def drop_gradients(engine: DeepSpeedEngine) -> None:
    """ZeRO 1 and 2 with offload: forget the gradient of a step that was skipped.

    DeepSpeed 0.19.8 clears it only without offload (stage_1_and_2.py, step), and would add every later one to it.
    """
    if engine.zero_optimization_stage() in (1, 2):
        engine.optimizer.averaged_gradients.clear()


_COUNTERS = ("basic_optimizer.state", "global_steps", "global_samples", "skipped_steps", "micro_steps")
_TOUCHED = {  # by stage: all that this module will ever read, set or call
    0: ("clip_fp32_gradients",),
    1: ("optimizer.update_lp_params",),
    2: ("optimizer.update_lp_params",),
    3: tuple(
        f"optimizer.{name}"
        for name in (
            "grad_position",
            "get_param_id",
            "fp32_partitioned_groups_flat",
            "fp16_partitioned_groups_flat",
            "checkpoint_event_prologue",
            "checkpoint_event_epilogue",
            "_reassign_or_swap_out_partitioned_parameters",
        )
    ),
}


def self_test(engine: DeepSpeedEngine) -> None:
    """Refuse a DeepSpeed that keeps its state elsewhere, before a step is made. Raises LockstepError."""
    stage = engine.zero_optimization_stage()
    names = [*_COUNTERS, *_TOUCHED[stage]]
    if getattr(getattr(engine.optimizer, "loss_scaler", None), "dynamic", False):
        names += [f"optimizer.loss_scaler.{key}" for key in (*_SCALER, "raise_error_at_min_scale")]
    if getattr(engine.optimizer, "cpu_offload", False):
        names += ["optimizer.averaged_gradients"]
    problems = [f"engine.{name} is missing" for name in names if not _has(engine, name)]
    if stage in (1, 2):
        problems += [f"{n} has no _hp_mapping" for n, p in _trained(engine) if not hasattr(p, "_hp_mapping")][:1]
    problems = problems or _misplaced(engine)
    if problems:
        raise LockstepError(
            f"DeepSpeed {deepspeed.__version__} does not keep its state where this version of Lockstep looks for it "
            f"({'; '.join(problems)}); known good: {', '.join(KNOWN_GOOD)}"
        )


def _has(engine: DeepSpeedEngine, name: str) -> bool:
    try:
        attrgetter(name)(engine)
    except AttributeError:
        return False
    return True


def _misplaced(engine: DeepSpeedEngine) -> list[str]:
    """What is wrong with the masters that were found. A collective."""
    fragments = owned_fragments(engine)
    found = torch.tensor([sum(f.length for f in fragments)], dtype=torch.int64, device=engine.device)
    deepspeed.comm.all_reduce(found)
    wanted = sum(_size(p) for _, p in _trained(engine))
    problems = [] if found.item() == wanted else [f"{found.item()} of {wanted} fp32 weights found"]
    other = {str(f.master.dtype) for f in fragments} - {"torch.float32"}
    return problems + [f"masters are {dtype}" for dtype in sorted(other)]


def _trained(engine: DeepSpeedEngine) -> Iterator[tuple[str, Any]]:
    """The trained parameters by name, with what DeepSpeed has hung on them."""
    return ((name, p) for name, p in engine.module.named_parameters() if p.requires_grad)


def _size(parameter: Any) -> int:
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def _owners(fragments: list[Fragment]) -> list[torch.Tensor]:
    return list({id(fragment.owner): fragment.owner for fragment in fragments}.values())


def _whole(engine: DeepSpeedEngine) -> Iterator[Fragment]:
    """ZeRO 0: every rank holds everything."""
    for name, p in _trained(engine):
        yield Fragment(name, 0, p.numel(), p, 0)


def _share(held: list[Fragment], engine: DeepSpeedEngine) -> list[Fragment]:
    """ZeRO 0: all parameters end to end, cut into equal shares, so that each rank answers for one."""
    share = -(-sum(fragment.length for fragment in held) // engine.world_size)
    first, last = engine.global_rank * share, (engine.global_rank + 1) * share
    begin, owned = 0, []
    for fragment in held:
        low, high = max(first - begin, 0), min(last - begin, fragment.length)
        if low < high:
            owned.append(Fragment(fragment.name, low, high - low, fragment.owner, low))
        begin += fragment.length
    return owned


def _linked(engine: DeepSpeedEngine) -> Iterator[Fragment]:
    """ZeRO 1 and 2: DeepSpeed links each low-precision parameter to its part of this rank's flat partition."""
    flats = [p for group in engine.basic_optimizer.param_groups for p in group["params"]]
    owners = {flat.untyped_storage().data_ptr(): flat for flat in flats}
    for name, p in _trained(engine):
        if p._hp_mapping is not None:
            piece = p._hp_mapping.get_hp_fragment()
            owner = owners[piece.untyped_storage().data_ptr()]
            start = piece.storage_offset() - owner.storage_offset()
            yield Fragment(name, p._hp_mapping.lp_fragment_address.start, piece.numel(), owner, start)


def _partitioned(engine: DeepSpeedEngine) -> Iterator[Fragment]:
    """ZeRO 3: each parameter is cut into equal shares, the last ones padded; the padding is not ours."""
    optimizer = engine.optimizer
    for name, p in _trained(engine):
        group, start, share = optimizer.grad_position[optimizer.get_param_id(p)]
        offset = share * engine.global_rank
        length = max(0, min(share, p.ds_numel - offset))
        yield Fragment(name, offset, length, optimizer.fp32_partitioned_groups_flat[group], start)
