"""A plan on one screen, its longer tables, and its JSON."""

import textwrap
from typing import Any

from configs.solve.batch import BatchPlan
from configs.solve.memory import ModelStates
from launcher.format import format_amount, format_count, format_rate, format_size
from launcher.plan.plan import RunPlan, list_all_batch_plans

_WIDTH = 100
_LABEL = 9


def render_plan(plan: RunPlan) -> str:
    """The plan, one line per question."""
    config, run_dir = plan.config, plan.run_dir
    lines = [f"{config.name} → {run_dir.path} ({_progress(plan)})"]
    lines += _row("batch", format_equation(plan.batch_plan))
    lines += _row("length", _length(plan))
    lines += _row("lr", _rates(plan))
    lines += _row("memory", _memory(plan))
    lines += _row("disk", _disk(plan))
    lines += _row("shapes", " | ".join(_shape(batch_plan, plan.batch_plan) for batch_plan in plan.shapes))
    if config.pictures:
        lines += _row("pictures", str(run_dir.pictures))
    for note in plan.notes:
        lines += _row("note", note)
    lines += [f"{'next':<{_LABEL}}{plan.next}"]  # never wrapped: it is there to be copied
    return "\n".join(lines)


def format_equation(batch_plan: BatchPlan) -> str:
    """`256 = 8 micro-batch × 4 accumulation × 8 ranks (2 nodes × 4)`."""
    shape = batch_plan.shape
    ranks = f"{shape.world_size} rank" + ("s" if shape.world_size > 1 else "")
    where = "" if shape.world_size == 1 else f" ({shape.nodes} node{'s' if shape.nodes > 1 else ''}"
    where += f" × {shape.gpus_per_node})" if where else ""
    passes = f"{batch_plan.micro_batch} micro-batch × {batch_plan.accumulation} accumulation"
    return f"{batch_plan.batch} = {passes} × {ranks}{where}"


def render_shapes(plan: RunPlan) -> str:
    """Every (nodes, micro-batch, accumulation) that keeps the batch."""
    lines = [f"every shape that keeps batch {plan.batch_plan.batch}, as micro-batch × accumulation:"]
    for shape, found in list_all_batch_plans(plan):
        cuts = [_cut(batch_plan) + (" ←" if batch_plan == plan.batch_plan else "") for batch_plan in found]
        lines += _row(f"{shape}", "   ".join(cuts), indent=8)
    return "\n".join(lines)


def render_memory(plan: RunPlan) -> str:
    """Model states per GPU and in CPU memory for every ZeRO stage."""
    memory = plan.memory
    if memory.parameters is None:
        return f"model states: unknown, because no UNet file of {plan.config.model} is on this machine"
    shared = f"{plan.batch_plan.shape.world_size} ranks" if plan.batch_plan.shape.world_size > 1 else "1 rank"
    lines = [
        f"model states of {memory.parameters:,} parameters in {plan.config.precision} over {shared}, per rank; "
        "activations not included",
        f"{'':<18}{'GPU':>12}{'CPU':>12}",
    ]
    for states in memory.alternatives:
        here = "  ←" if states == memory.states else ""
        lines.append(
            f"{states.label:<18}{format_size(states.gpu):>12}{format_size(states.cpu) if states.cpu else '–':>12}{here}"
        )
    return "\n".join(lines)


def plan_to_json(plan: RunPlan) -> dict[str, Any]:
    """Everything the plan knows, for programs; sizes in bytes, null where unknown."""
    config, batch_plan, length, memory = plan.config, plan.batch_plan, plan.length, plan.memory
    per_epoch = length.steps_per_epoch
    assert per_epoch is not None
    return {
        "name": config.name,
        "run_dir": str(plan.run_dir.path),
        "continues_at": plan.continues_at,
        **_split_json(batch_plan),
        "world_size": batch_plan.shape.world_size,
        "batch": batch_plan.batch,
        "dataset_samples": plan.dataset,
        "steps_per_epoch": int(per_epoch) if per_epoch.denominator == 1 else float(per_epoch),
        "total_steps": length.steps,
        "total_samples": length.samples,
        "epochs": length.epochs_after(length.steps),
        "samples_into_next_epoch": plan.into_next_epoch,
        "lr": [{"step": step, "lr": value} for step, value in plan.lr],
        "memory": {
            "unet_parameters": memory.parameters,
            "states": [_states_json(states) for states in memory.alternatives],
            "chosen": _states_json(memory.states) if memory.states else None,
            "activation_bytes": memory.activations,
            "activations": "estimate" if memory.activations else "not included",
        },
        "checkpoint": {
            "bytes": memory.checkpoint,
            "every_steps": config.checkpoint.every_steps,
            "keep": config.checkpoint.keep,
            "free_bytes": plan.free,
        },
        "shapes": [_split_json(batch_plan) for _, found in list_all_batch_plans(plan) for batch_plan in found],
        "pictures": str(plan.run_dir.pictures) if config.pictures else None,
        "notes": plan.notes,
        "next": plan.next,
        "deepspeed": plan.deepspeed,
    }


def _split_json(batch_plan: BatchPlan) -> dict[str, int]:
    return {
        "nodes": batch_plan.shape.nodes,
        "gpus_per_node": batch_plan.shape.gpus_per_node,
        "micro_batch": batch_plan.micro_batch,
        "gradient_accumulation_steps": batch_plan.accumulation,
    }


def _states_json(states: ModelStates) -> dict[str, Any]:
    return {"zero": states.zero, "offload": states.offload, "gpu_bytes": states.gpu, "cpu_bytes": states.cpu}


def _row(label: str, text: str, indent: int = _LABEL) -> list[str]:
    """`label    text`, wrapped under the text; paths stay whole."""
    lines = textwrap.wrap(text, _WIDTH - indent, break_long_words=False, break_on_hyphens=False)
    return [f"{label if number == 0 else '':<{indent}}{line}" for number, line in enumerate(lines)]


def _progress(plan: RunPlan) -> str:
    if plan.continues_at is not None:
        finished = plan.continues_at >= plan.length.steps
        return f"trained to step {plan.continues_at:,}" if finished else f"goes on after step {plan.continues_at:,}"
    return "started, no checkpoint yet" if plan.started else "new"


def _length(plan: RunPlan) -> str:
    config, length = plan.config, plan.length
    assert length.steps_per_epoch is not None
    known = f"{format_count(plan.dataset, 'sample')} → {format_amount(length.steps_per_epoch)} steps/epoch; "
    steps = format_count(length.steps, "step")
    if config.steps is not None:
        epochs = format_amount(length.samples / plan.dataset)
        return known + f"{steps} → {format_count(length.samples, 'sample')}, {epochs} epochs"
    if config.samples is not None:
        over = length.samples - config.samples
        more = f" ({format_amount(over)} samples more, to fill the last batch)" if over else ""
        return known + f"{format_count(config.samples, 'sample')} → {steps}{more}"
    wanted = format_count(config.epochs if config.epochs is not None else 1, "epoch")
    whole = config.epochs is None or config.epochs.is_integer()
    over = plan.into_next_epoch
    where = "into the next" if whole and over < plan.dataset else "more, to fill the last batch"
    return known + f"{wanted} → {steps}" + (f" ({format_count(over, 'sample')} {where})" if over else "")


def _rates(plan: RunPlan) -> str:
    config, total = plan.config, plan.length.steps
    warm = config.warmup_steps
    start = f"0 → {format_rate(config.lr)} at step {warm:,}, then " if warm else ""
    if warm >= total:
        return f"0 → {format_rate(plan.lr[-1][1])} at step {total:,}, all of it warm-up"
    if config.schedule == "constant":
        return start + ("constant" if warm else f"{format_rate(config.lr)}, constant")
    points = [f"{format_rate(value)} at {step:,}" for step, value in plan.lr if step > warm or step == total]
    return start + f"{config.schedule}: " + ", ".join(points)


def _memory(plan: RunPlan) -> str:
    memory = plan.memory
    activations = f"~{format_size(memory.activations)} (estimate)" if memory.activations else "(not included)"
    if memory.states is None:
        return (
            f"ZeRO-{plan.config.zero}: model states unknown (no UNet file here to count) + activations (not included)"
        )
    where = f" and {format_size(memory.states.cpu)}/rank in CPU memory" if memory.states.cpu else ""
    return (
        f"{memory.states.label}: model states {format_size(memory.states.gpu)}/GPU{where} + activations {activations}"
    )


def _disk(plan: RunPlan) -> str:
    checkpoint = plan.config.checkpoint
    each = (
        f"{format_size(plan.memory.checkpoint)} per checkpoint" if plan.memory.checkpoint else "checkpoint size unknown"
    )
    when = f"keeps {checkpoint.keep}" if checkpoint.every_steps else "one at the end"
    return f"{each}, {when}; {format_size(plan.free)} free"


def _shape(batch_plan: BatchPlan, here: BatchPlan) -> str:
    return f"{batch_plan.shape}: {_cut(batch_plan)}" + (" ←" if batch_plan == here else "")


def _cut(batch_plan: BatchPlan) -> str:
    return f"{batch_plan.micro_batch}×{batch_plan.accumulation}"
