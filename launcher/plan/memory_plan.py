"""What a run takes of its GPUs and its nodes' memory, beside what they have."""

from collections.abc import Iterator
from dataclasses import dataclass

from configs.pipelines import PipelineSize
from configs.schema import LoraConfig, RunConfig
from configs.solve.adapters import ParameterCounts, count_parameters
from configs.solve.device_memory import DeviceMemory, estimate_device_memory, estimate_states
from configs.solve.hardware import MARGIN, Hardware
from configs.solve.host_memory import HostMemory, estimate_host_memory
from configs.solve.memory import ModelStates, estimate_checkpoint, list_alternatives
from configs.solve.settle import Settled
from launcher.format import format_size


@dataclass(frozen=True)
class MemoryPlan:
    """Sizes in bytes; None is `unknown`, which is printed as such and never guessed."""

    parameters: ParameterCounts | None  # of the UNet
    states: ModelStates | None  # of one rank of this run
    full_states: ModelStates | None  # of a run with adapters: if it trained the UNet's own weights
    device: DeviceMemory  # of one rank of this run, all that it holds
    alternatives: list[tuple[ModelStates, DeviceMemory]]  # of every ZeRO stage, with and without offload
    host: HostMemory | None  # of one node
    checkpoint: int | None
    hardware: Hardware
    capacity: float | None  # of one GPU, or of a rank's share of the node's memory

    @property
    def fits(self) -> bool | None:
        return self.device.fits(self.capacity)


def plan_memory(settled: Settled, hardware: Hardware, size: PipelineSize) -> MemoryPlan:
    """Of the run as it is settled."""
    config, batch_plan = settled.config, settled.batch_plan
    parameters = count_parameters(config, size)
    full = config.model_copy(update={"lora": None})
    alternatives = []
    for alternative in list_alternatives(config):
        states = estimate_states(alternative, batch_plan, size)
        if states is not None:
            alternatives.append((states, estimate_device_memory(alternative, batch_plan, size, hardware)))
    device = estimate_device_memory(config, batch_plan, size, hardware)
    return MemoryPlan(
        parameters=parameters,
        states=estimate_states(config, batch_plan, size),
        full_states=estimate_states(full, batch_plan, size) if config.lora else None,
        device=device,
        alternatives=alternatives,
        host=estimate_host_memory(config, batch_plan, size, device, hardware),
        checkpoint=None if parameters is None else estimate_checkpoint(config, parameters.trained),
        hardware=hardware,
        capacity=hardware.measure_device(batch_plan.shape.gpus_per_node),
    )


def describe_savings(memory: MemoryPlan, lora: LoraConfig) -> str:
    """The adapters of a run, how much they train of what, and what that saves."""
    targets = lora.targets if isinstance(lora.targets, str) else ", ".join(lora.targets)
    text = f"{'DoRA' if lora.dora else 'LoRA'}, rank {lora.rank}, alpha {lora.effective_alpha:g}, on {targets}"
    counts, states, full = memory.parameters, memory.states, memory.full_states
    if counts is None or states is None or full is None:
        return f"{text}; how many parameters that trains is unknown"
    share = f"{counts.trained:,} parameters ({counts.trained / counts.frozen:.2%} beside {counts.frozen:,} frozen ones)"
    return f"{text}: trains {share}; model states {format_size(states.gpu)} in the place of {format_size(full.gpu)}"


def warn_of_memory(memory: MemoryPlan, config: RunConfig, reasons: dict[str, str]) -> Iterator[str]:
    """What does not fit, or cannot be told, a sentence each."""
    hardware = memory.hardware
    if memory.fits is False:
        place = "one GPU" if hardware.gpus else "a rank's share of the node's memory"
        room = format_size((1 - MARGIN) * (memory.capacity or 0))
        yield (
            f"what a rank holds does not fit into {place}: {format_size(memory.device.total or 0)} is more than "
            f"{room}, all less a margin of {MARGIN:.0%}; write {_list_savings(config, hardware)}"
        )
    if memory.host is not None and memory.host.fits(hardware) is False:
        yield (
            f"a node needs about {format_size(memory.host.total)} of its own memory, and a job gets "
            f"{hardware.host_memory:g} GiB; write more into memory_per_node of the site profile, or fewer data.workers"
        )
    if hardware.gpus and memory.capacity is None and "zero" in reasons:
        yield (
            "gpu_memory is unknown, so nobody can tell which ZeRO stage fits; lockstep doctor writes it into the site "
            "profile"
        )


def _list_savings(config: RunConfig, hardware: Hardware) -> str:
    """The keys that make a rank hold less, of those that the config has not set yet."""
    savings = ["a smaller micro_batch"]
    if not config.gradient_checkpointing:
        savings.append("gradient_checkpointing: true")
    if config.engine == "fsdp2" and not config.reshard:
        savings.append("reshard: true")
    if config.engine == "deepspeed" and config.zero != 3:
        savings.append("a higher zero")
    if hardware.gpus and not config.offload:
        savings.append("offload: true")
    return " or ".join([", ".join(savings[:-1]), savings[-1]] if len(savings) > 1 else savings)
