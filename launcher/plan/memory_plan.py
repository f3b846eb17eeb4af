"""What a run takes of its GPUs and its nodes' memory, beside what they have."""

from collections.abc import Iterator
from dataclasses import dataclass

from configs.errors import UserError
from configs.known_models import PipelineSize
from configs.optimizers import OPTIMIZERS, explain_sharding
from configs.schema import LoraConfig, RunConfig, find_disagreements
from configs.solve.adapters import ParameterCounts, count_parameters
from configs.solve.device_memory import DeviceMemory, estimate_device_memory, estimate_states
from configs.solve.hardware import MARGIN, Hardware
from configs.solve.host_memory import HostMemory, estimate_host_memory
from configs.solve.memory import ModelStates, estimate_checkpoint, list_alternatives
from configs.solve.settle import Settled, settle_memory
from launcher.format import format_size


@dataclass(frozen=True)
class Fit:
    """The largest micro-batch that fits into a GPU, at the lowest stage that takes it: what `auto` would settle."""

    gradient_checkpointing: bool
    settled: Settled | None  # None: not one sample fits
    device: DeviceMemory


@dataclass(frozen=True)
class Saving:
    """What one more option would change of what a rank holds; bytes."""

    option: str  # as it stands in the config
    saved: int  # of the GPU's memory; negative: it takes more
    moved: int  # what it takes of the node's memory in exchange
    is_other_run: bool  # it changes what is learned, and not only what that costs


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
    fits_by_checkpointing: list[Fit]  # without gradient checkpointing, and with it; none where nobody can tell
    savings: list[Saving]  # none where nobody can tell

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
        fits_by_checkpointing=list(_list_fits(settled, hardware, size)),
        savings=list(_list_option_savings(settled, hardware, size)),
    )


def _list_fits(settled: Settled, hardware: Hardware, size: PipelineSize) -> Iterator[Fit]:
    """Of the run as it is settled, were its stage and its micro-batch left open."""
    device = estimate_device_memory(settled.config, settled.batch_plan, size, hardware)
    if device.fits(hardware.measure_device(settled.batch_plan.shape.gpus_per_node)) is None:
        return
    for recomputed in (False, True):
        changes = {"micro_batch": "auto", "zero": "auto", "gradient_checkpointing": recomputed}
        opened = settled.config.model_copy(update=changes)
        try:
            found = settle_memory(opened, settled.batch_plan, hardware, size)
        except UserError:  # not one sample fits
            yield Fit(recomputed, None, device)
            continue
        yield Fit(recomputed, found, estimate_device_memory(found.config, found.batch_plan, size, hardware))


def _list_option_savings(settled: Settled, hardware: Hardware, size: PipelineSize) -> Iterator[Saving]:
    config, batch_plan = settled.config, settled.batch_plan
    now, states = estimate_device_memory(config, batch_plan, size, hardware), estimate_states(config, batch_plan, size)
    for option, changed, is_other_run in _list_options(config, hardware):
        counts = count_parameters(changed, size)
        trained = counts.trained if counts else None
        if explain_sharding(changed, batch_plan.shape.world_size, trained) is not None:
            continue
        then = estimate_device_memory(changed, batch_plan, size, hardware)
        changed_states = estimate_states(changed, batch_plan, size)
        if now.total is None or then.total is None or states is None or changed_states is None:
            continue
        yield Saving(option, now.total - then.total, changed_states.cpu - states.cpu, is_other_run)


def _list_options(config: RunConfig, hardware: Hardware) -> Iterator[tuple[str, RunConfig, bool]]:
    """What the config has not set yet: an option as it is written, the config with it, and whether it is another run.
    Those that its other keys forbid are left out."""
    if config.lora is None:
        yield "lora: true", config.model_copy(update={"lora": LoraConfig()}), True
    if not config.gradient_checkpointing:
        yield "gradient_checkpointing: true", config.model_copy(update={"gradient_checkpointing": True}), False
    kinds = ["off", "latents", "all"]
    for cache in kinds[kinds.index(config.data.cached) + 1 :]:
        changed = config.model_copy(update={"data": config.data.model_copy(update={"cache": cache})})
        if not any(find_disagreements(changed)):
            yield f"data.cache: {cache}", changed, False
    if hardware.gpus and not config.offload:
        if config.zero == 0:
            yield "zero: 1, offload: true", config.model_copy(update={"zero": 1, "offload": True}), False
        else:
            yield "offload: true", config.model_copy(update={"offload": True}), False
    if config.engine == "deepspeed" and config.precision != "fp16":
        yield "engine: fsdp2, without zero", config.model_copy(update={"engine": "fsdp2"}), False
    if config.optimizer.name == "adamw":
        optimizer = config.optimizer.model_copy(update={"name": "adamw_8bit"})
        yield "optimizer: {name: adamw_8bit}", config.model_copy(update={"optimizer": optimizer}), True


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
    is_flat = config.engine == "deepspeed" and OPTIMIZERS[config.optimizer.name].is_elementwise
    if is_flat and config.zero != 3:
        savings.append("a higher zero")
    if hardware.gpus and not config.offload and (is_flat or config.engine == "fsdp2"):
        savings.append("offload: true")
    return " or ".join([", ".join(savings[:-1]), savings[-1]] if len(savings) > 1 else savings)
