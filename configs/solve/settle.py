"""What a config leaves open, settled for one shape and one kind of hardware: `auto` of precision, zero, micro_batch.

Pure: a requeued attempt on another shape settles its own anew, on a compute node.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from configs.errors import UserError
from configs.known_models import PipelineSize
from configs.optimizers import OPTIMIZERS, explain_sharding
from configs.schema import RunConfig, find_disagreements
from configs.solve.adapters import ParameterCounts, count_parameters
from configs.solve.batch import BatchPlan, list_micro_batches
from configs.solve.device_memory import estimate_device_memory
from configs.solve.hardware import Hardware, is_bf16_capable

UNKNOWN_ZERO = 2  # the stage where nobody can tell what fits
EARLIER_PRECISION = "fp32"  # of a run whose config says nothing: an earlier version wrote it


@dataclass(frozen=True)
class Settled:
    """`config` with nothing left open but its length, the batch plan that goes with it, and why: key → reason."""

    config: RunConfig
    batch_plan: BatchPlan
    reasons: dict[str, str] = field(default_factory=dict)


def settle_precision(config: RunConfig, hardware: Hardware, begun: str | None = None) -> tuple[RunConfig, str | None]:
    """`config` with a dtype for its precision, and why where it leaves it open. A run that was `begun` in one keeps it;
    fp16 is never chosen, because its loss scale makes another curve. Raises UserError where other keys forbid it."""
    if config.precision != "auto":
        return config, None
    if begun is not None:
        precision, reason = begun, "the run was begun in it"
    elif not hardware.gpus:
        precision, reason = "fp32", "ranks compute on CPUs"
    elif config.zero == 0:
        precision, reason = "fp32", "zero: 0 has no other"
    elif config.engine == "deepspeed" and not OPTIMIZERS[config.optimizer.name].is_elementwise:
        precision, reason = "fp32", f"optimizer.name: {config.optimizer.name} needs zero: 0, which has no other"
    elif hardware.has_bf16 is None:
        precision, reason = "bf16", "compute_capability is unknown; ranks look"
    elif hardware.has_bf16:
        precision, reason = "bf16", f"compute capability {hardware.compute_capability}"
    else:
        precision = "fp32"
        reason = f"compute capability {hardware.compute_capability} has no bf16; precision: fp16 is faster"
    settled = config.model_copy(update={"precision": precision})
    for disagreement in find_disagreements(settled):
        raise UserError(disagreement.sentence)
    return settled, reason


def check_precision(precision: str, compute_capability: str | None) -> None:
    """Raises UserError where GPUs of this compute capability, where it is known, do not compute in `precision`."""
    if precision == "bf16" and compute_capability is not None and not is_bf16_capable(compute_capability):
        raise UserError(
            f"precision: bf16 needs GPUs of compute capability 8.0 or more, and these have {compute_capability}; ask "
            "for others, or write precision: fp16 or fp32, and another name where the run was begun in bf16"
        )


def settle_memory(config: RunConfig, batch_plan: BatchPlan, hardware: Hardware, size: PipelineSize) -> Settled:
    """`config` with numbers for `zero` and `micro_batch`, and with a dtype, on the shape of `batch_plan`: the largest
    micro-batch that fits, at the lowest stage where it does.

    Raises UserError where `micro_batch: auto` has no answer, or where the optimizer cannot be sharded as it must be.
    """
    if config.precision == "auto":
        config = config.model_copy(update={"precision": EARLIER_PRECISION})
    memory = hardware.measure_device(batch_plan.shape.gpus_per_node)
    choices = list(_list_choices(config, batch_plan, size))
    fits = [estimate_device_memory(c.config, c.batch_plan, size, hardware).fits(memory) for c in choices]
    fitting = [choice for choice, fit in zip(choices, fits, strict=True) if fit]
    if config.micro_batch == "auto" and not fitting:
        raise UserError(_describe_no_micro_batch(config, hardware, known=None not in fits))
    if fitting:
        # Stage 3 sends every weight twice per micro-batch: only where no other fits.
        others = [choice for choice in fitting if choice.config.zero != 3]
        chosen = max(others or fitting, key=lambda choice: choice.batch_plan.micro_batch)
        reason = "the lowest stage that fits"
        if config.micro_batch == "auto":
            reason += f" with micro-batch {chosen.batch_plan.micro_batch}"
    elif None in fits:
        chosen = next((choice for choice in choices if choice.config.zero == UNKNOWN_ZERO), choices[-1])
        reason = "nobody can tell what fits"
    else:
        chosen, reason = choices[-1], "no stage fits"
    reasons = {"zero": reason} if config.zero == "auto" and config.engine == "deepspeed" else {}
    if config.micro_batch == "auto":
        reasons["micro_batch"] = "the largest that fits"
    return replace(chosen, reasons=reasons)


def _list_choices(config: RunConfig, batch_plan: BatchPlan, size: PipelineSize) -> Iterator[Settled]:
    """Every stage and micro-batch that the config leaves open, lower stages and larger micro-batches first."""
    stages = _list_stages(config, batch_plan, count_parameters(config, size))
    micro_batches = [batch_plan.micro_batch]
    per_rank = batch_plan.micro_batch * batch_plan.accumulation
    if config.micro_batch == "auto":
        micro_batches = list(reversed(list_micro_batches(config.data, batch_plan.batch, per_rank)))
    for zero in stages:
        for micro_batch in micro_batches:
            settled = _set_stage(config, zero)
            if config.micro_batch == "auto":
                settled = settled.model_copy(update={"micro_batch": micro_batch})
            yield Settled(settled, BatchPlan(batch_plan.shape, micro_batch, per_rank // micro_batch))


def _list_stages(config: RunConfig, batch_plan: BatchPlan, counts: ParameterCounts | None) -> list[int]:
    """The stages that the config leaves open and its optimizer takes. Raises UserError where it takes none."""
    if config.engine == "fsdp2":
        stages = [UNKNOWN_ZERO]  # which has none
    elif config.zero != "auto":
        stages = [config.zero]
    else:
        stages = [stage for stage in (0, 1, 2, 3) if not any(find_disagreements(_set_stage(config, stage)))]
    world_size = batch_plan.shape.world_size
    trained = counts.trained if counts else None
    refusals = [explain_sharding(_set_stage(config, zero), world_size, trained) for zero in stages]
    if None not in refusals:
        raise UserError(str(refusals[0]))
    return [zero for zero, refusal in zip(stages, refusals, strict=True) if refusal is None]


def _set_stage(config: RunConfig, zero: object) -> RunConfig:
    return config.model_copy(update={"zero": zero})


def _describe_no_micro_batch(config: RunConfig, hardware: Hardware, *, known: bool) -> str:
    """Why there is none, and the cure."""
    place = "a GPU" if hardware.gpus else "a rank's share of the node's memory"
    if known:
        cure = "write gradient_checkpointing: true, a smaller data.resolution, or ask for more GPUs"
        return f"micro_batch: auto finds none, because not one sample fits into {place} beside the model; {cure}"
    unknown = "how much one of its samples takes is not known before it runs"
    if hardware.measure_device(1) is None:
        unknown = f"how large {place} is, is not known"
        key = "gpu_memory" if hardware.gpus else "memory_per_node"
        return f"micro_batch: auto finds none, because {unknown}; write {key} into the site profile, or a number here"
    return f"micro_batch: auto finds none for {config.model}, because {unknown}; write a number"
