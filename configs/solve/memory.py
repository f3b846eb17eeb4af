"""How large a UNet is and what a rank holds of it, without torch: for plans, before anything is queued."""

import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.optimizers import OPTIMIZERS
from configs.pipelines import KNOWN_MODELS, SD1, find_cached_snapshot
from configs.schema import RunConfig
from configs.solve.deepspeed import ZERO3_LIVE_PARAMETERS

_SINGLE_FILE = "diffusion_pytorch_model.safetensors"
_HEADER_LIMIT = 100 << 20  # bytes; safetensors' own limit


def count_unet_parameters(model: str) -> int | None:
    """The UNet's parameter count: from its files (a folder, or the Hugging Face cache), else from the known ids.

    None where neither knows.
    """
    folder = Path(model) if os.path.isabs(model) else find_cached_snapshot(model)
    if folder is not None and (counted := _count(folder / "unet")) is not None:
        return counted
    known = KNOWN_MODELS.get(model)
    return known.unet_parameters if known is not None else None


def _count(unet: Path) -> int | None:
    """Sum over the headers of the UNet's safetensors; None where there are none or they do not read."""
    sizes = [_header_parameters(file) for file in _weight_files(unet)]
    known = [size for size in sizes if size is not None]
    return sum(known) if known and len(known) == len(sizes) else None


def _weight_files(unet: Path) -> list[Path]:
    """The files that together hold the weights once: fp32 before a variant such as fp16, whole before sharded."""
    if (single := unet / _SINGLE_FILE).is_file():
        return [single]
    for index in sorted(unet.glob("*.safetensors.index*.json")):
        try:
            shards = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        except (ValueError, KeyError, AttributeError):
            return []  # damaged: unknown, and the load will say why
        return [unet / name for name in sorted(set(shards))]
    return sorted(unet.glob("diffusion_pytorch_model.*.safetensors"))[:1]


def _header_parameters(file: Path) -> int | None:
    """Elements of all tensors in a safetensors file: 8 bytes little-endian length, then that much JSON."""
    try:
        with open(file, "rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if not 2 <= length <= _HEADER_LIMIT:
                return None
            header: dict[str, Any] = json.loads(stream.read(length))
    except (OSError, ValueError):
        return None
    shapes: list[list[int]] = [tensor["shape"] for name, tensor in header.items() if name != "__metadata__"]
    return sum(math.prod(shape) for shape in shapes)


@dataclass(frozen=True)
class ModelStates:
    """What one rank holds while the last micro-batch of a step runs, activations apart; all in bytes."""

    zero: int
    offload: bool
    gpu: int
    cpu: int

    @property
    def label(self) -> str:
        """As `plan` shows it: `ZeRO-2 + offload`."""
        return f"ZeRO-{self.zero}" + (" + offload" if self.offload else "")


def estimate_model_states(
    config: RunConfig,
    parameters: int,
    world: int,
    *,
    accumulation: int = 1,
    live_parameters: int = ZERO3_LIVE_PARAMETERS,
) -> ModelStates:
    """Model states of one of `world` ranks as DeepSpeed 0.19.8 lays them out under our rendered config.

    With P parameters, W ranks, p bytes per parameter in the passes (fp32 4, bf16 and fp16 2) and o of the optimizer's
    states (configs/optimizers.py; AdamW 8), in bytes:

    ====  =========  ==============================================================  =====================
    ZeRO  precision  parameters + gradients                                          master, optimizer states
    ====  =========  ==============================================================  =====================
    0     fp32       4P + 4P                                                         oP, the weights are the master
    1     fp32       4P + 4P (each rank accumulates all of them)                     4P/W + oP/W
    1     bf16       2P + 2P in bf16 + 4P accumulated in fp32 (BF16_Optimizer)       4P/W + oP/W
    1     fp16       2P + 4P accumulated in fp32 + 4P/W of them flat                 4P/W + oP/W
    2     fp32       4P + 4P/W, twice while accumulating                             4P/W + oP/W
    2     16 bits    2P + 4P/W accumulated in fp32                                   4P/W + oP/W
    3     any        pP/W + p · gathered + 4P/W accumulated in fp32                  4P/W + oP/W
    ====  =========  ==============================================================  =====================

    `gathered` is min(P, `live_parameters`): what ZeRO-3 keeps whole at one time. EMA adds an fp32 4P/W beside the
    master. Offload moves master, optimizer states, EMA and the gradients the optimizer reads (4P/W) to CPU memory, with
    a buffer of pP/W for the way back (ZeRO 1, 2); bf16 at ZeRO 1 then takes the layout of fp16. Not in it: activations,
    the frozen VAE and text encoder, communication buffers (`reduce_bucket_size`) and what CUDA and NCCL keep.
    """
    zero, offload = config.zero, config.offload
    state_bytes = OPTIMIZERS[config.optimizer.name].bytes_per_parameter
    width = 4 if config.precision == "fp32" else 2
    whole, shard = parameters, math.ceil(parameters / world)
    average = 4 * shard if config.ema is not None else 0
    if zero == 0:
        return ModelStates(0, False, gpu=4 * whole + 4 * whole + state_bytes * whole + average, cpu=0)
    optimizer = (4 + state_bytes) * shard
    if zero == 3:
        gathered = min(parameters, live_parameters) if world > 1 else 0
        held = width * (shard + gathered)
        if offload:
            return ModelStates(3, True, gpu=held, cpu=optimizer + 4 * shard + 4 * shard + average)
        return ModelStates(3, False, gpu=held + 4 * shard + optimizer + average, cpu=0)
    gradients = _estimate_gradients(config, whole, shard, accumulation)
    if offload:
        cpu = optimizer + 4 * shard + width * shard + average
        return ModelStates(zero, True, gpu=width * whole + gradients, cpu=cpu)
    return ModelStates(zero, False, gpu=width * whole + gradients + optimizer + average, cpu=0)


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


def list_model_states(config: RunConfig, parameters: int, world: int, *, accumulation: int) -> Iterator[ModelStates]:
    """Every ZeRO stage that the config's precision allows, with and without CPU offload."""
    for zero in (0, 1, 2, 3):
        if zero == 0 and config.precision != "fp32":
            continue  # the schema refuses it
        for offload in (False, True) if zero else (False,):
            alternative = config.model_copy(update={"zero": zero, "offload": offload})
            yield estimate_model_states(alternative, parameters, world, accumulation=accumulation)


def estimate_activations(
    parameters: int | None, *, resolution: int, precision: str, micro_batch: int, recomputed: bool
) -> int | None:
    """An estimate of the activations of one pass, or None where none was counted.

    The one count there is: the SD 1.x UNet at 512 pixels in bf16 held 14 GiB at micro-batch 16, and activations grow
    with the micro-batch. `recomputed`: gradient checkpointing, not counted.
    """
    if parameters == SD1.unet_parameters and resolution == 512 and precision == "bf16" and not recomputed:
        return 14 * 2**30 * micro_batch // 16
    return None


def estimate_checkpoint(config: RunConfig, parameters: int) -> int:
    """Bytes of one checkpoint: the weights, the optimizer's states and, with EMA, the average; all in fp32."""
    values = 1 + len(OPTIMIZERS[config.optimizer.name].states) + (config.ema is not None)
    return 4 * values * parameters
