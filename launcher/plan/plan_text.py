"""A plan on one screen, its longer tables, and its JSON."""

import textwrap
from typing import Any

from configs.objective import describe_objective, is_plainest
from configs.optimizers import describe_optimizer
from configs.solve.batch import BatchPlan
from configs.solve.captions import describe_captions
from launcher.data.encodings import describe_encodings, encodings_to_json
from launcher.format import format_amount, format_count, format_rate, format_size
from launcher.plan.data_plan import BucketPlan
from launcher.plan.memory_text import describe_adapters, describe_host, describe_memory, memory_to_json
from launcher.plan.plan import RunPlan, list_all_batch_plans

_WIDTH = 100
_LABEL = 9


def render_plan(plan: RunPlan) -> str:
    """The plan, one line per question."""
    config, run_dir = plan.config, plan.run_dir
    shapes = [_marked_shape(batch_plan, plan.batch_plan) for batch_plan in plan.shapes]
    lines = [f"{config.name} → {run_dir.path} ({_progress(plan)})"]
    if plan.family is not None:
        lines += _row("model", _model(plan))
    lines += _row("batch", format_equation(plan.batch_plan))
    lines += _row("length", _length(plan))
    if plan.data.buckets:
        lines += _row("buckets", _buckets(plan.data.buckets))
    lines += _row("lr", _learning_rate(plan))
    if config.optimizer.name != "adamw":
        lines += _row("update", describe_optimizer(config))
    if plan.reasons:
        lines += _row("auto", "; ".join(f"{key} {_settled(plan, key)}: {why}" for key, why in plan.reasons.items()))
    if config.data.caption_chunks > 1 or config.data.tag_shuffle or config.data.tag_dropout:
        lines += _row("captions", describe_captions(config.data))
    if not is_plainest(config):
        lines += _row("loss", "; ".join(f"{name} {words}" for name, words in describe_objective(config).items()))
    if config.lora:
        lines += _row("lora", describe_adapters(plan.memory, config.lora))
    lines += _row("memory", describe_memory(plan))
    lines += _row("host", describe_host(plan))
    lines += _row("disk", _disk(plan))
    if plan.encodings is not None:
        lines += _row("cache", describe_encodings(plan.encodings, plan.batch_plan.shape.world_size))
    lines += _row("shapes", " | ".join(shapes))
    if config.pictures:
        lines += _row("pictures", str(run_dir.pictures_path))
    for note in plan.notes:
        lines += _row("note", note)
    if plan.next_command is not None:
        lines.append(f"{'next':<{_LABEL}}{plan.next_command}")  # never wrapped: it is there to be copied
    return "\n".join(lines)


def format_equation(batch_plan: BatchPlan) -> str:
    """`256 = 8 micro-batch × 4 accumulation × 8 ranks (2 nodes × 4)`."""
    shape = batch_plan.shape
    ranks = format_count(shape.world_size, "rank")
    if shape.world_size > 1:
        ranks += f" ({format_count(shape.nodes, 'node')} × {shape.gpus_per_node})"
    return (
        f"{batch_plan.batch} = {batch_plan.micro_batch} micro-batch × {batch_plan.accumulation} accumulation × {ranks}"
    )


def render_shapes(plan: RunPlan) -> str:
    """Every (nodes, micro-batch, accumulation) that keeps the batch."""
    lines = [f"every shape that keeps batch {plan.batch_plan.batch}, as micro-batch × accumulation:"]
    for shape, batch_plans in list_all_batch_plans(plan):
        factors = []
        for batch_plan in batch_plans:
            mark = " ←" if batch_plan == plan.batch_plan else ""
            factors.append(_factors(batch_plan) + mark)
        lines += _row(str(shape), "   ".join(factors), indent=8)
    return "\n".join(lines)


def plan_to_json(plan: RunPlan) -> dict[str, Any]:
    """Everything the plan knows, for programs; sizes in bytes, null where unknown."""
    config, batch_plan, length, memory = plan.config, plan.batch_plan, plan.length, plan.memory
    per_epoch = length.steps_per_epoch
    assert per_epoch is not None
    all_batch_plans = [batch_plan for _, batch_plans in list_all_batch_plans(plan) for batch_plan in batch_plans]
    return {
        "name": config.name,
        "run_dir": str(plan.run_dir.path),
        "model": {"family": plan.family, "revision": config.revision, "variant": config.variant},
        "continues_at": None if plan.changes else plan.newest_step,
        "changes": plan.changes,
        **_batch_plan_to_json(batch_plan),
        "world_size": batch_plan.shape.world_size,
        "batch": batch_plan.batch,
        "dataset_samples": plan.data.samples,
        "epoch_samples": float(plan.epoch),
        "buckets": _buckets_to_json(plan.data.buckets) if plan.data.buckets else None,
        "steps_per_epoch": int(per_epoch) if per_epoch.denominator == 1 else float(per_epoch),
        "total_steps": length.steps,
        "total_samples": length.samples,
        "epochs": length.epochs_after(length.steps),
        "samples_into_next_epoch": plan.into_next_epoch,
        "lr": [{"step": step, "lr": rate} for step, rate in plan.lr],
        "optimizer": describe_optimizer(config),
        "auto": {key: {"value": _settled(plan, key), "reason": reason} for key, reason in plan.reasons.items()},
        "objective": describe_objective(config),
        "captions": describe_captions(config.data),
        "memory": memory_to_json(memory),
        "checkpoint": {
            "bytes": memory.checkpoint,
            "every_steps": config.checkpoint.every_steps,
            "keep": config.checkpoint.keep,
            "free_bytes": plan.free_bytes,
        },
        "cache": encodings_to_json(plan.encodings, batch_plan.shape.world_size) if plan.encodings else None,
        "shapes": [_batch_plan_to_json(batch_plan) for batch_plan in all_batch_plans],
        "pictures": str(plan.run_dir.pictures_path) if config.pictures else None,
        "notes": plan.notes,
        "next": plan.next_command,
        "deepspeed": plan.deepspeed,
    }


def _buckets_to_json(buckets: BucketPlan) -> dict[str, Any]:
    sizes = [{"width": size.width, "height": size.height, "samples": count} for size, count in buckets.sizes]
    shares = {"cropped": buckets.cropped, "cropped_as_squares": buckets.cropped_as_squares}
    return {"sizes": sizes, "grain": buckets.grain, "micro_batches": buckets.micro_batches, **shares}


def _batch_plan_to_json(batch_plan: BatchPlan) -> dict[str, int]:
    return {
        "nodes": batch_plan.shape.nodes,
        "gpus_per_node": batch_plan.shape.gpus_per_node,
        "micro_batch": batch_plan.micro_batch,
        "gradient_accumulation_steps": batch_plan.accumulation,
    }


def _settled(plan: RunPlan, key: str) -> Any:
    """What stands now for a key that the config leaves open."""
    return plan.batch_plan.micro_batch if key == "micro_batch" else getattr(plan.config, key)


def _row(label: str, text: str, indent: int = _LABEL) -> list[str]:
    """`label    text`, wrapped under the text; paths stay whole."""
    first, *rest = textwrap.wrap(text, _WIDTH - indent, break_long_words=False, break_on_hyphens=False)
    return [f"{label:<{indent}}{first}", *(" " * indent + line for line in rest)]


def _model(plan: RunPlan) -> str:
    """`Stable Diffusion XL, stabilityai/stable-diffusion-xl-base-1.0, variant fp16`."""
    config = plan.config
    parts = [plan.family, config.model]
    parts += [f"{key} {value}" for key, value in (("revision", config.revision), ("variant", config.variant)) if value]
    return ", ".join(part for part in parts if part)


def _progress(plan: RunPlan) -> str:
    """How far the run has come."""
    if plan.changes:
        return "holds another run"
    if plan.newest_step is None:
        return "started, no checkpoint yet" if plan.started else "new"
    if plan.newest_step >= plan.length.steps:
        return f"trained to step {plan.newest_step:,}"
    return f"resumes after step {plan.newest_step:,}"


def _length(plan: RunPlan) -> str:
    """The config's own unit of length first, then what comes of it."""
    config, length, size = plan.config, plan.length, plan.epoch
    assert length.steps_per_epoch is not None
    dataset = format_count(plan.data.samples, "sample")
    if size != plan.data.samples:
        dataset += f", {format_amount(size)} in an epoch"
    dataset += f" → {format_amount(length.steps_per_epoch)} steps/epoch; "
    steps = format_count(length.steps, "step")
    if config.steps is not None:
        epochs = format_amount(length.samples / size)
        return dataset + f"{steps} → {format_count(length.samples, 'sample')}, {epochs} epochs"
    if config.samples is not None:
        more = length.samples - config.samples
        filled = f" ({format_amount(more)} samples more, to fill the last batch)" if more else ""
        return dataset + f"{format_count(config.samples, 'sample')} → {steps}{filled}"
    config_epochs = config.epochs if config.epochs is not None else 1
    text = dataset + f"{format_count(config_epochs, 'epoch')} → {steps}"
    more = plan.into_next_epoch
    if not more:
        return text
    only_next_epoch = float(config_epochs).is_integer() and more < size
    purpose = "into the next" if only_next_epoch else "more, to fill the last batch"
    return text + f" ({format_count(more, 'sample')} {purpose})"


def _buckets(buckets: BucketPlan) -> str:
    """How many samples are cut to each size, what that cuts away, and the micro-batches that it leaves."""
    sizes = " | ".join(f"{size}: {count:,}" for size, count in buckets.sizes)
    return (
        f"{sizes}; {buckets.cropped:.1%} of an image is cropped away ({buckets.cropped_as_squares:.1%} as squares); "
        f"grain {buckets.grain} allows micro-batches of {', '.join(map(str, buckets.micro_batches))}"
    )


def _learning_rate(plan: RunPlan) -> str:
    """The schedule in words: warm-up, then a constant or some points of the curve."""
    config, total, warmup = plan.config, plan.length.steps, plan.config.warmup_steps
    last_rate = format_rate(plan.lr[-1][1])
    if warmup >= total:
        return f"0 → {last_rate} at step {total:,}, all of it warm-up"
    start = f"0 → {format_rate(config.lr)} at step {warmup:,}, then " if warmup else ""
    if config.lr_schedule == "constant":
        return f"{start}constant" if warmup else f"{format_rate(config.lr)}, constant"
    points = [f"{format_rate(rate)} at {step:,}" for step, rate in plan.lr if step > warmup or step == total]
    return f"{start}{config.lr_schedule}: {', '.join(points)}"


def _disk(plan: RunPlan) -> str:
    checkpoint, size = plan.config.checkpoint, plan.memory.checkpoint
    each = f"{format_size(size)} per checkpoint" if size else "checkpoint size unknown"
    kept = f"keeps {checkpoint.keep}" if checkpoint.every_steps else "one at the end"
    return f"{each}, {kept}; {format_size(plan.free_bytes)} free"


def _marked_shape(batch_plan: BatchPlan, planned: BatchPlan) -> str:
    """`2×4: 8×4 ←`; the arrow marks what is planned."""
    mark = " ←" if batch_plan == planned else ""
    return f"{batch_plan.shape}: {_factors(batch_plan)}{mark}"


def _factors(batch_plan: BatchPlan) -> str:
    """`8×4`: micro-batch × accumulation."""
    return f"{batch_plan.micro_batch}×{batch_plan.accumulation}"
