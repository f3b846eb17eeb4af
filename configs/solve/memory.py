"""What a rank holds of the model states, without torch: for plans, before anything is queued."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from configs.optimizers import OPTIMIZERS
from configs.schema import RunConfig, find_disagreements
from configs.solve.deepspeed import ZERO3_LIVE_PARAMETERS
from configs.solve.engine import name_sharding

# Parameters that FSDP2 keeps whole at one time with reshard: those outside of blocks, and the two largest blocks, of
# which one computes while the next is gathered (178 million in Stable Diffusion 1 and 2, 152 in SDXL).
FSDP2_LIVE_PARAMETERS = 178_000_000


@dataclass(frozen=True)
class ModelStates:
    """What one rank holds while the last micro-batch of a step runs, activations apart; all in bytes."""

    layout: str  # as `plan` shows it, such as ZeRO-2
    offload: bool
    gpu: int
    cpu: int

    @property
    def label(self) -> str:
        """As `plan` shows it: `ZeRO-2 + offload`."""
        return self.layout + (" + offload" if self.offload else "")


def count_width(config: RunConfig) -> int:
    """Bytes of one element in the UNet's passes; `config` has a dtype for its precision."""
    assert config.precision != "auto", "it is settled before"
    return 4 if config.precision == "fp32" else 2


def estimate_model_states(
    config: RunConfig,
    parameters: int,
    world: int,
    *,
    frozen: int = 0,
    accumulation: int = 1,
    live_parameters: int = ZERO3_LIVE_PARAMETERS,
) -> ModelStates:
    """Model states of one of `world` ranks, as DeepSpeed 0.19.8 lays them out under our rendered config, and torch's
    DistributedDataParallel (stage 0) and FSDP2 as train/engines has them.

    With P trained parameters, W ranks, p bytes per parameter in the passes (fp32 4, bf16 and fp16 2) and o of the
    optimizer's states (configs/optimizers.py; AdamW 8, of 8 bits 2.03, Adafactor 2.13 of Stable Diffusion 1), in bytes:

    ====  =========  ==============================================================  =====================
    ZeRO  precision  parameters + gradients                                          master, optimizer states
    ====  =========  ==============================================================  =====================
    0     fp32       4P + 4P, twice on several ranks while accumulating              oP, the weights are the master
    1     fp32       4P + 4P (each rank accumulates all of them)                     4P/W + oP/W
    1     bf16       2P + 2P in bf16 + 4P accumulated in fp32 (BF16_Optimizer)       4P/W + oP/W
    1     fp16       2P + 4P accumulated in fp32 + 4P/W of them flat                 4P/W + oP/W
    2     fp32       4P + 4P/W, twice while accumulating                             4P/W + oP/W
    2     16 bits    2P + 4P/W accumulated in fp32                                   4P/W + oP/W
    3     any        pP/W + p · gathered + 4P/W accumulated in fp32                  4P/W + oP/W
    FSDP2            p · gathered + 4P/W; 4P while accumulating without reshard      4P/W + oP/W
    ====  =========  ==============================================================  =====================

    `gathered` is min(P + F, `live_parameters`): what ZeRO-3 keeps whole at one time; under FSDP2 all without reshard,
    else its root and two blocks. F `frozen` parameters, those under adapters, add pF, and pF/W where weights are
    sharded (ZeRO 3, FSDP2). EMA adds an fp32 4P/W beside the
    master. Offload moves master, optimizer states, EMA and the gradients the optimizer reads (4P/W) to CPU memory, with
    a buffer of pP/W for the way back (ZeRO 1, 2); bf16 at ZeRO 1 then takes the layout of fp16. What else is on a GPU
    is summed up in configs/solve/device_memory.py.
    """
    zero, offload, layout = config.zero, config.offload, describe_layout(config)
    if config.engine == "fsdp2":
        return _estimate_sharded_states(config, parameters, frozen, world, accumulation)
    assert zero != "auto", "it is settled before"
    state_bytes = OPTIMIZERS[config.optimizer.name].bytes_per_parameter
    width = count_width(config)
    whole, shard = parameters, math.ceil(parameters / world)
    average = 4 * shard if config.ema is not None else 0
    beside = width * frozen
    if zero == 0:  # gradients are views of the buckets that are reduced, but for those that a step begins with
        gradients = 4 * whole * (2 if world > 1 and accumulation > 1 else 1)
        optimizer = math.ceil(state_bytes * whole)
        return ModelStates(layout, False, gpu=4 * whole + gradients + optimizer + average + beside, cpu=0)
    optimizer = 4 * shard + math.ceil(state_bytes * shard)
    if zero == 3:
        gathered = min(parameters + frozen, live_parameters) if world > 1 else 0
        held = width * (shard + math.ceil(frozen / world) + gathered)
        if offload:
            return ModelStates(layout, True, gpu=held, cpu=optimizer + 4 * shard + 4 * shard + average)
        return ModelStates(layout, False, gpu=held + 4 * shard + optimizer + average, cpu=0)
    gradients = _estimate_gradients(config, whole, shard, accumulation)
    if offload:
        cpu = optimizer + 4 * shard + width * shard + average
        return ModelStates(layout, True, gpu=width * whole + beside + gradients, cpu=cpu)
    return ModelStates(layout, False, gpu=width * whole + beside + gradients + optimizer + average, cpu=0)


def _estimate_sharded_states(config: RunConfig, whole: int, frozen: int, world: int, accumulation: int) -> ModelStates:
    """Of a rank under FSDP2: see the table of `estimate_model_states`."""
    shard, width, layout = math.ceil(whole / world), count_width(config), describe_layout(config)
    state_bytes = OPTIMIZERS[config.optimizer.name].bytes_per_parameter
    kept = (4 + (4 if config.ema is not None else 0)) * shard + math.ceil(state_bytes * shard)
    kept += width * math.ceil(frozen / world)
    gathered = width * (min(whole + frozen, FSDP2_LIVE_PARAMETERS) if config.reshard else whole + frozen)
    gradients = 4 * (whole if accumulation > 1 and not config.reshard else shard)
    if config.offload:  # what is summed up whole stays on the GPU until it is cut
        on_gpu = gradients if gradients > 4 * shard else 0
        return ModelStates(layout, True, gpu=gathered + on_gpu, cpu=kept + 4 * shard)
    return ModelStates(layout, False, gpu=gathered + gradients + kept, cpu=0)


def describe_layout(config: RunConfig) -> str:
    """What shards the states, for a person: `ZeRO-2`, `FSDP2` or `FSDP2, no reshard`."""
    if config.engine == "fsdp2":
        return name_sharding(None) + ("" if config.reshard else ", no reshard")
    assert config.zero != "auto", "it is settled before"
    return name_sharding(config.zero)


def _estimate_gradients(config: RunConfig, whole: int, shard: int, accumulation: int) -> int:
    """Bytes of gradients on the GPU under ZeRO 1 and 2; see the table of `estimate_model_states`."""
    if config.zero == 1:
        if config.precision == "fp32":
            return 4 * whole
        if config.precision == "bf16" and not config.offload:
            return 2 * whole + 4 * whole
        return 4 * whole + 4 * shard
    if config.precision == "fp32":
        return 4 * shard * (2 if accumulation > 1 and not config.offload else 1)
    return 4 * shard


def list_alternatives(config: RunConfig) -> Iterator[RunConfig]:
    """`config` with every ZeRO stage that its other keys and its optimizer allow, or both ways of FSDP2, with and
    without offload."""
    if config.engine == "fsdp2":
        for reshard in (False, True):
            for offload in (False, True):
                yield config.model_copy(update={"reshard": reshard, "offload": offload})
        return
    for zero in (0, 1, 2, 3):
        if zero and not OPTIMIZERS[config.optimizer.name].is_elementwise:
            continue
        for offload in (False, True):
            alternative = config.model_copy(update={"zero": zero, "offload": offload})
            if not any(find_disagreements(alternative)):
                yield alternative


def estimate_checkpoint(config: RunConfig, parameters: int) -> int:
    """Bytes of one checkpoint of so many trained parameters: the weights, the optimizer's states and, with EMA, the
    average; all in fp32."""
    values = 1 + (config.ema is not None)
    return 4 * values * parameters + math.ceil(OPTIMIZERS[config.optimizer.name].bytes_saved * parameters)
