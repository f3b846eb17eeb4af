"""What a run takes of its GPUs and nodes: its lines on the screen, the tables of `--memory`, and the JSON."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from configs.schema import LoraConfig
from configs.solve.device_memory import DeviceMemory
from configs.solve.hardware import GIB, MARGIN
from configs.solve.memory import ModelStates, describe_layout
from launcher.format import format_count, format_size
from launcher.plan.memory_plan import Fit, MemoryPlan, Saving
from launcher.plan.plan import RunPlan


def describe_adapters(memory: MemoryPlan, lora: LoraConfig) -> str:
    """How much a run's adapters train of what, and what that saves."""
    targets = lora.targets if isinstance(lora.targets, str) else ", ".join(lora.targets)
    text = f"{'DoRA' if lora.dora else 'LoRA'}, rank {lora.rank}, alpha {lora.effective_alpha:g}, on {targets}"
    counts, states, full = memory.parameters, memory.states, memory.full_states
    if counts is None or states is None or full is None:
        return f"{text}; how many parameters that trains is unknown"
    share = f"{counts.trained:,} parameters ({counts.trained / counts.frozen:.2%} beside {counts.frozen:,} frozen ones)"
    return f"{text}: trains {share}; model states {format_size(states.gpu)} in the place of {format_size(full.gpu)}"


def describe_memory(plan: RunPlan) -> str:
    """All that one rank holds, its parts, and whether it fits."""
    memory, device = plan.memory, plan.memory.device
    label = memory.states.label if memory.states else describe_layout(plan.config)
    if device.total is not None:
        label += f": {format_size(device.total)}/{'GPU' if memory.hardware.gpus else 'rank'}"
    runtime = "CUDA and NCCL" if memory.hardware.gpus else "Python and torch"
    parts = {
        "model states": device.states,
        "activations": device.activations,
        "frozen models": device.frozen,
        runtime: device.runtime,
    }
    text = f"{label} = " if device.total is not None else f"{label}: "
    text += " + ".join(f"{_gibibytes(part)} {name}" for name, part in parts.items())
    if memory.capacity is None:
        return f"{text}; {'gpu_memory' if memory.hardware.gpus else 'memory_per_node'} unknown"
    fit = {True: "fits into", False: "does not fit into", None: "of"}[memory.fits]
    return f"{text}; {fit} {format_size(memory.capacity)}"


def describe_host(plan: RunPlan) -> str:
    """What the ranks of one node hold in its own memory."""
    host, hardware = plan.memory.host, plan.memory.hardware
    if host is None:
        return "memory of a node unknown (no UNet file here to count)"
    ranks = format_count(plan.batch_plan.shape.gpus_per_node, "rank")
    text = f"{format_size(host.total)}/node for {ranks}"
    if host.offload:
        text += f", {format_size(host.offload)} of it offloaded model states"
    if hardware.host_memory is None:
        return text
    fit = "fits into" if host.fits(hardware) else "does not fit into"
    return f"{text}; {fit} {format_size(hardware.host_memory * GIB)}"


def render_memory(plan: RunPlan) -> str:
    """What a rank holds on its GPU, and in CPU memory, for every ZeRO stage."""
    memory = plan.memory
    if memory.parameters is None:
        return f"model states: unknown, because no UNet file of {plan.config.model} is on this machine"
    counts, ranks = memory.parameters, format_count(plan.batch_plan.shape.world_size, "rank")
    frozen = f" trained and {counts.frozen:,} frozen" if counts.frozen else ""
    title = f"{counts.trained:,}{frozen} parameters in {plan.config.precision} over {ranks}"
    lines = [f"what one rank holds of {title}; in all: as above"]
    lines.append(f"{'':<18}{'states, GPU':>12}{'CPU':>12}{'in all, GPU':>13}")
    for states, device in memory.alternatives:
        gpu, total = format_size(states.gpu), "unknown" if device.total is None else format_size(device.total)
        cpu = format_size(states.cpu) if states.cpu else "–"
        fit = {True: "  fits", False: "  does not fit", None: ""}[device.fits(memory.capacity)]
        mark = "  ←" if states == memory.states else ""
        lines.append(f"{states.label:<18}{gpu:>12}{cpu:>12}{total:>13}{fit}{mark}")
    return "\n".join([*lines, *_render_fits(memory), *_render_savings(memory)])


def _render_fits(memory: MemoryPlan) -> Iterator[str]:
    """The smallest stage and the largest micro-batch for a GPU so large."""
    if not memory.fits_by_checkpointing or memory.capacity is None:
        return
    yield f"\nthe most that fits into {format_size(memory.capacity)} with a margin of {MARGIN:.0%}:"
    for fit in memory.fits_by_checkpointing:
        yield f"{f'gradient_checkpointing: {str(fit.gradient_checkpointing).lower()}':<31}{_describe_fit(fit)}"


def _describe_fit(fit: Fit) -> str:
    if fit.settled is None:
        return "not one sample"
    config, batch_plan = fit.settled.config, fit.settled.batch_plan
    share = "" if batch_plan.accumulation > 1 else ", a rank's whole share"
    text = f"{describe_layout(config)}, micro-batch {batch_plan.micro_batch}"
    return f"{text} × {batch_plan.accumulation}: {format_size(fit.device.total or 0)}{share}"


def _render_savings(memory: MemoryPlan) -> Iterator[str]:
    """What each option that is not set yet would save."""
    if not memory.savings or memory.device.total is None:
        return
    yield f"\nwhat one option more would save of these {format_size(memory.device.total)}:"
    for saving in memory.savings:
        yield f"{saving.option:<34}{_describe_saving(saving)}"


def _describe_saving(saving: Saving) -> str:
    text = "nothing here" if saving.saved == 0 else f"{format_size(abs(saving.saved))}"
    if saving.saved < 0:
        text += " more than now"
    if saving.moved > 0:
        text += f", and takes {format_size(saving.moved)} of the node's memory"
    if saving.is_other_run:
        text += "; another run"
    return text


def memory_to_json(memory: MemoryPlan) -> dict[str, Any]:
    host = memory.host
    return {
        "unet_parameters": memory.parameters.unet if memory.parameters else None,
        "trained_parameters": memory.parameters.trained if memory.parameters else None,
        "states": [_states_to_json(states, device) for states, device in memory.alternatives],
        "chosen": _states_to_json(memory.states, memory.device) if memory.states else None,
        "device": {**dataclasses.asdict(memory.device), "total": memory.device.total},
        "device_bytes": memory.capacity,
        "fits": memory.fits,
        "host": {**dataclasses.asdict(host), "total": host.total} if host else None,
        "hardware": dataclasses.asdict(memory.hardware),
        "most": [_fit_to_json(fit) for fit in memory.fits_by_checkpointing],
        "savings": [dataclasses.asdict(saving) for saving in memory.savings],
    }


def _fit_to_json(fit: Fit) -> dict[str, Any]:
    settled = fit.settled
    return {
        "gradient_checkpointing": fit.gradient_checkpointing,
        "zero": settled.config.zero if settled and settled.config.engine == "deepspeed" else None,
        "micro_batch": settled.batch_plan.micro_batch if settled else None,
        "total_bytes": fit.device.total if settled else None,
    }


def _states_to_json(states: ModelStates, device: DeviceMemory) -> dict[str, Any]:
    return {
        "layout": states.layout,
        "offload": states.offload,
        "gpu_bytes": states.gpu,
        "cpu_bytes": states.cpu,
        "total_bytes": device.total,
    }


def _gibibytes(count: int | None) -> str:
    """One part of a sum in GiB."""
    if count is None:
        return "unknown"
    return f"{count / GIB:.1f}" if count >= GIB // 20 else "<0.1"
