"""A plan on one screen, its longer tables, and its JSON."""

import textwrap
from typing import Any

from configs.solve.batch import BatchPlan
from configs.solve.memory import States
from launcher.format import amount, plural, rate, size
from launcher.plan.plan import Plan, every_split

_WIDTH = 100
_LABEL = 9


def screen(plan: Plan) -> str:
    """The plan, one line per question."""
    config, run_dir = plan.config, plan.run_dir
    lines = [f"{config.name} → {run_dir.path} ({_progress(plan)})"]
    lines += _row("batch", equation(plan.split))
    lines += _row("length", _length(plan))
    lines += _row("lr", _rates(plan))
    lines += _row("memory", _memory(plan))
    lines += _row("disk", _disk(plan))
    lines += _row("shapes", " | ".join(_shape(split, plan.split) for split in plan.shapes))
    if config.pictures:
        lines += _row("pictures", str(run_dir.pictures))
    for note in plan.notes:
        lines += _row("note", note)
    lines += [f"{'next':<{_LABEL}}{plan.next}"]  # never wrapped: it is there to be copied
    return "\n".join(lines)


def equation(split: BatchPlan) -> str:
    """`256 = 8 micro-batch × 4 accumulation × 8 ranks (2 nodes × 4)`."""
    shape = split.shape
    ranks = f"{shape.world_size} rank" + ("s" if shape.world_size > 1 else "")
    where = "" if shape.world_size == 1 else f" ({shape.nodes} node{'s' if shape.nodes > 1 else ''}"
    where += f" × {shape.gpus_per_node})" if where else ""
    return f"{split.batch} = {split.micro_batch} micro-batch × {split.accumulation} accumulation × {ranks}{where}"


def every_shape(plan: Plan) -> str:
    """Every (nodes, micro-batch, accumulation) that keeps the batch."""
    lines = [f"every shape that keeps batch {plan.split.batch}, as micro-batch × accumulation:"]
    for shape, found in every_split(plan):
        cuts = [_cut(split) + (" ←" if split == plan.split else "") for split in found]
        lines += _row(f"{shape}", "   ".join(cuts), indent=8)
    return "\n".join(lines)


def all_memory(plan: Plan) -> str:
    """Model states per GPU and in CPU memory for every ZeRO stage."""
    memory = plan.memory
    if memory.parameters is None:
        return f"model states: unknown, because no UNet file of {plan.config.model} is on this machine"
    shared = f"{plan.split.shape.world_size} ranks" if plan.split.shape.world_size > 1 else "1 rank"
    lines = [
        f"model states of {memory.parameters:,} parameters in {plan.config.precision} over {shared}, per rank; "
        "activations not included",
        f"{'':<18}{'GPU':>12}{'CPU':>12}",
    ]
    for states in memory.alternatives:
        here = "  ←" if states == memory.states else ""
        lines.append(f"{states.label:<18}{size(states.gpu):>12}{size(states.cpu) if states.cpu else '–':>12}{here}")
    return "\n".join(lines)


def as_json(plan: Plan) -> dict[str, Any]:
    """Everything the plan knows, for programs; sizes in bytes, null where unknown."""
    config, split, length, memory = plan.config, plan.split, plan.length, plan.memory
    per_epoch = length.steps_per_epoch
    assert per_epoch is not None
    return {
        "name": config.name,
        "run_dir": str(plan.run_dir.path),
        "continues_at": plan.continues_at,
        **_split_json(split),
        "world_size": split.shape.world_size,
        "batch": split.batch,
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
        "shapes": [_split_json(split) for _, found in every_split(plan) for split in found],
        "pictures": str(plan.run_dir.pictures) if config.pictures else None,
        "notes": plan.notes,
        "next": plan.next,
        "deepspeed": plan.deepspeed,
    }


def _split_json(split: BatchPlan) -> dict[str, int]:
    return {
        "nodes": split.shape.nodes,
        "gpus_per_node": split.shape.gpus_per_node,
        "micro_batch": split.micro_batch,
        "gradient_accumulation_steps": split.accumulation,
    }


def _states_json(states: States) -> dict[str, Any]:
    return {"zero": states.zero, "offload": states.offload, "gpu_bytes": states.gpu, "cpu_bytes": states.cpu}


def _row(label: str, text: str, indent: int = _LABEL) -> list[str]:
    """`label    text`, wrapped under the text; paths stay whole."""
    lines = textwrap.wrap(text, _WIDTH - indent, break_long_words=False, break_on_hyphens=False)
    return [f"{label if number == 0 else '':<{indent}}{line}" for number, line in enumerate(lines)]


def _progress(plan: Plan) -> str:
    if plan.continues_at is not None:
        finished = plan.continues_at >= plan.length.steps
        return f"trained to step {plan.continues_at:,}" if finished else f"goes on after step {plan.continues_at:,}"
    return "started, no checkpoint yet" if plan.started else "new"


def _length(plan: Plan) -> str:
    config, length = plan.config, plan.length
    assert length.steps_per_epoch is not None
    known = f"{plural(plan.dataset, 'sample')} → {amount(length.steps_per_epoch)} steps/epoch; "
    steps = plural(length.steps, "step")
    if config.steps is not None:
        return known + f"{steps} → {plural(length.samples, 'sample')}, {amount(length.samples / plan.dataset)} epochs"
    if config.samples is not None:
        over = length.samples - config.samples
        more = f" ({amount(over)} samples more, to fill the last batch)" if over else ""
        return known + f"{plural(config.samples, 'sample')} → {steps}{more}"
    wanted = plural(config.epochs if config.epochs is not None else 1, "epoch")
    whole = config.epochs is None or config.epochs.is_integer()
    over = plan.into_next_epoch
    where = "into the next" if whole and over < plan.dataset else "more, to fill the last batch"
    return known + f"{wanted} → {steps}" + (f" ({plural(over, 'sample')} {where})" if over else "")


def _rates(plan: Plan) -> str:
    config, total = plan.config, plan.length.steps
    warm = config.warmup_steps
    start = f"0 → {rate(config.lr)} at step {warm:,}, then " if warm else ""
    if warm >= total:
        return f"0 → {rate(plan.lr[-1][1])} at step {total:,}, all of it warm-up"
    if config.schedule == "constant":
        return start + ("constant" if warm else f"{rate(config.lr)}, constant")
    points = [f"{rate(value)} at {step:,}" for step, value in plan.lr if step > warm or step == total]
    return start + f"{config.schedule}: " + ", ".join(points)


def _memory(plan: Plan) -> str:
    memory = plan.memory
    activations = f"~{size(memory.activations)} (estimate)" if memory.activations else "(not included)"
    if memory.states is None:
        return (
            f"ZeRO-{plan.config.zero}: model states unknown (no UNet file here to count) + activations (not included)"
        )
    where = f" and {size(memory.states.cpu)}/rank in CPU memory" if memory.states.cpu else ""
    return f"{memory.states.label}: model states {size(memory.states.gpu)}/GPU{where} + activations {activations}"


def _disk(plan: Plan) -> str:
    checkpoint = plan.config.checkpoint
    each = f"{size(plan.memory.checkpoint)} per checkpoint" if plan.memory.checkpoint else "checkpoint size unknown"
    when = f"keeps {checkpoint.keep}" if checkpoint.every_steps else "one at the end"
    return f"{each}, {when}; {size(plan.free)} free"


def _shape(split: BatchPlan, here: BatchPlan) -> str:
    return f"{split.shape}: {_cut(split)}" + (" ←" if split == here else "")


def _cut(split: BatchPlan) -> str:
    return f"{split.micro_batch}×{split.accumulation}"
