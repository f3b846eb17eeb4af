"""Where DeepSpeed keeps the training state. The only module that touches its private attributes (zero3_linear replaces
one of its functions).

Every ZeRO stage comes down to fragments of flattened parameters, each a run of elements in an fp32 tensor that the
optimizer updates. Known good: DeepSpeed 0.19.8 (`check_state_layout` runs at every start and says so where another
version keeps its state elsewhere).
"""

from collections.abc import Iterator
from operator import attrgetter
from typing import Any

import deepspeed
import torch
from deepspeed import DeepSpeedEngine

from configs.errors import LockstepError
from train.engines.base import Fragment
from train.engines.held_state import Place

KNOWN_GOOD = ("0.19.8",)


Places = dict[Fragment, Place]


def find_owned(engine: DeepSpeedEngine) -> Places:
    """What this rank holds, and answers for. Over all ranks these cover every trained parameter exactly once."""
    find = _find_partitioned if engine.zero_optimization_stage() == 3 else _find_linked
    # a parameter that lies on other ranks altogether, or only in padding, leaves an empty piece
    return {fragment: place for fragment, place in find(engine) if fragment.length}


def set_progress(engine: DeepSpeedEngine, *, step: int, applied: int) -> None:
    """Tell DeepSpeed that `step` steps are done, `applied` of them updates."""
    engine.global_steps = step
    engine.global_samples = step * engine.train_batch_size()
    engine.skipped_steps = step - applied
    engine.micro_steps = step * engine.gradient_accumulation_steps()


_SCALER = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


def read_loss_scaler(engine: DeepSpeedEngine) -> dict[str, float] | None:
    """The dynamic loss scale of fp16 and its counters; None in another precision."""
    scaler = getattr(engine.optimizer, "loss_scaler", None)
    return {key: getattr(scaler, key) for key in _SCALER} if getattr(scaler, "dynamic", False) else None


def set_loss_scaler(engine: DeepSpeedEngine, state: dict[str, float] | None) -> None:
    """Go on with what `read_loss_scaler` answered before; None leaves the scaler as it is."""
    for key, value in (state or {}).items():
        setattr(engine.optimizer.loss_scaler, key, value)


def keep_smallest_loss_scale(engine: DeepSpeedEngine) -> None:
    """fp16: an overflow at the smallest loss scale is a skipped step like any other; DeepSpeed would raise."""
    if read_loss_scaler(engine) is not None:
        engine.optimizer.loss_scaler.raise_error_at_min_scale = False


@torch.no_grad()
def publish_masters(engine: DeepSpeedEngine) -> None:
    """Make the weights that forward passes see again from the masters, on every rank. A collective."""
    optimizer = engine.optimizer
    if engine.zero_optimization_stage() != 3:
        optimizer.update_lp_params()
        return
    optimizer.checkpoint_event_prologue()  # hands back what passes have gathered
    for group in range(len(optimizer.fp16_partitioned_groups_flat)):
        optimizer._reassign_or_swap_out_partitioned_parameters(group)
    optimizer.checkpoint_event_epilogue()  # gathers the small parameters that stay whole


def drop_gradients(engine: DeepSpeedEngine) -> None:
    """ZeRO 1 and 2 with offload: forget the gradient of a step that was skipped.

    DeepSpeed 0.19.8 clears it only without offload (stage_1_and_2.py, step), and would add every later one to it.
    """
    if engine.zero_optimization_stage() in (1, 2):
        engine.optimizer.averaged_gradients.clear()


_COUNTERS = ("basic_optimizer.state", "global_steps", "global_samples", "skipped_steps", "micro_steps")
_TOUCHED = {  # by stage: all that this module will ever read, set or call
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


def check_state_layout(engine: DeepSpeedEngine) -> None:
    """Refuse a DeepSpeed that keeps its state elsewhere, before a step is made: a save or a load would find out too
    late. Raises LockstepError, naming what is missing. A collective."""
    # A missing name is told first. Only where every name is there can the masters be looked for and counted.
    problems = _find_missing_names(engine) or _find_misplaced_masters(engine)
    if problems:
        raise LockstepError(
            f"DeepSpeed {deepspeed.__version__} does not keep its state where this version of Lockstep looks for it "
            f"({'; '.join(problems)}); known good: {', '.join(KNOWN_GOOD)}"
        )


def _find_missing_names(engine: DeepSpeedEngine) -> list[str]:
    stage = engine.zero_optimization_stage()
    names = [*_COUNTERS, *_TOUCHED[stage]]
    scaler = getattr(engine.optimizer, "loss_scaler", None)
    if getattr(scaler, "dynamic", False):  # fp16; elsewhere the scale is fixed, and nobody looks at it
        names += [f"optimizer.loss_scaler.{key}" for key in (*_SCALER, "raise_error_at_min_scale")]
    if getattr(engine.optimizer, "cpu_offload", False):
        names.append("optimizer.averaged_gradients")  # see drop_gradients
    problems = [f"engine.{name} is missing" for name in names if not _has(engine, name)]
    if stage in (1, 2):
        unlinked = [name for name, parameter in _trained(engine) if not hasattr(parameter, "_hp_mapping")]
        problems += [f"{name} has no _hp_mapping" for name in unlinked[:1]]
    return problems


def _has(engine: DeepSpeedEngine, name: str) -> bool:
    try:
        attrgetter(name)(engine)
    except AttributeError:
        return False
    return True


def _find_misplaced_masters(engine: DeepSpeedEngine) -> list[str]:
    """What is wrong with the masters: the ranks' must add up to all trained weights, in fp32. A collective."""
    owned = find_owned(engine)
    elements = sum(fragment.length for fragment in owned)
    total = torch.tensor([elements], dtype=torch.int64, device=engine.device)
    deepspeed.comm.all_reduce(total)
    expected = sum(_count_elements(parameter) for _, parameter in _trained(engine))
    problems = [] if total.item() == expected else [f"{total.item()} of {expected} fp32 weights found"]
    other_dtypes = {str(place.owner.dtype) for place in owned.values()} - {"torch.float32"}
    return problems + [f"masters are {dtype}" for dtype in sorted(other_dtypes)]


def _trained(engine: DeepSpeedEngine) -> Iterator[tuple[str, Any]]:
    """The trained parameters by name, with what DeepSpeed has hung on them."""
    return ((name, parameter) for name, parameter in engine.module.named_parameters() if parameter.requires_grad)


def _count_elements(parameter: Any) -> int:
    """Of the whole parameter: ZeRO 3 leaves an empty one behind, with the size beside it."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def _find_linked(engine: DeepSpeedEngine) -> Iterator[tuple[Fragment, Place]]:
    """ZeRO 1 and 2: DeepSpeed links each low-precision parameter to its part of this rank's flat partition.

    The link is a view, and the optimizer knows only the flat tensor behind it: found again by their common storage.
    """
    flats = [flat for group in engine.basic_optimizer.param_groups for flat in group["params"]]
    owners = {flat.untyped_storage().data_ptr(): flat for flat in flats}
    for name, parameter in _trained(engine):
        mapping = parameter._hp_mapping
        if mapping is None:  # no element of it is this rank's
            continue
        piece = mapping.get_hp_fragment()
        owner = owners[piece.untyped_storage().data_ptr()]
        start = piece.storage_offset() - owner.storage_offset()
        yield Fragment(name, mapping.lp_fragment_address.start, piece.numel()), Place(owner, start)


def _find_partitioned(engine: DeepSpeedEngine) -> Iterator[tuple[Fragment, Place]]:
    """ZeRO 3: each parameter is cut into equal shares, the last ones padded; the padding is not ours."""
    optimizer = engine.optimizer
    for name, parameter in _trained(engine):
        group, start, share = optimizer.grad_position[optimizer.get_param_id(parameter)]
        offset = share * engine.global_rank
        length = max(0, min(share, parameter.ds_numel - offset))
        yield Fragment(name, offset, length), Place(optimizer.fp32_partitioned_groups_flat[group], start)
