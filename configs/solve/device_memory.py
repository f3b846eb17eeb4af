"""What one rank holds on its GPU, all of it, without torch: the sum that is compared with the GPU's memory.

The model states, activations and frozen models are counted. What torch, CUDA and the engines keep beside them is not
known before a GPU shows it: the constants are from a reading of DeepSpeed 0.19.8 and torch 2.13, to be corrected by
bench.gpu.
"""

import math
from dataclasses import dataclass

from configs.known_models import PipelineSize
from configs.pipelines import LatentShape
from configs.schema import MOST_WORKERS, RunConfig
from configs.solve.activations import TEXT_TOKENS, Activations, count_activations
from configs.solve.adapters import count_adapter_activations, count_parameters
from configs.solve.batch import BatchPlan
from configs.solve.buckets import list_crop_sizes
from configs.solve.engine import choose_engine
from configs.solve.hardware import GIB, MARGIN, Hardware
from configs.solve.memory import ModelStates, count_width, estimate_checkpoint, estimate_model_states
from configs.solve.unet_layers import list_unet_layers

CUDA_CONTEXT = GIB // 2  # kernels and the driver's own
COMMUNICATORS = 5 * GIB // 4  # NCCL's buffers: torch's group and the engine's copy of it, on several ranks
WORKSPACES = GIB  # of cuDNN's convolutions and cuBLAS
BUCKETS = 6 * GIB // 10  # DeepSpeed: a bucket of 50 million gradients, joined and in fp32, and fp64 for the norm
PROCESS = GIB  # Python, torch and the libraries: where ranks compute on CPUs
WORKER = GIB // 2  # Python and torch, less what it shares with its rank, and images on their way
VAE_SLICE_PIXELS = 8 * 512 * 512  # of a micro-batch: so many or more are encoded at one time, see count_vae_slices
VAE_TENSORS = 5  # of the encoder's first width and the image's side, alive at one time (counted on the meta device)


@dataclass(frozen=True)
class DeviceMemory:
    """Bytes of one rank; None is unknown."""

    states: int | None
    activations: int | None
    frozen: int | None  # the models that are not trained
    runtime: int

    @property
    def total(self) -> int | None:
        """None where a part of it is unknown."""
        if self.states is None or self.activations is None or self.frozen is None:
            return None
        return self.states + self.activations + self.frozen + self.runtime

    def fits(self, memory: float | None) -> bool | None:
        """Whether it fits into so many bytes with a margin; None where that is unknown."""
        if self.total is None or memory is None:
            return None
        return self.total <= (1 - MARGIN) * memory


def estimate_device_memory(
    config: RunConfig, batch_plan: BatchPlan, size: PipelineSize, hardware: Hardware
) -> DeviceMemory:
    """What one rank holds at its highest; `config` has a dtype for its precision and a number for its stage."""
    states = estimate_states(config, batch_plan, size)
    return DeviceMemory(
        states=None if states is None else states.gpu + (0 if hardware.gpus else states.cpu),
        activations=_estimate_activations(config, batch_plan.micro_batch, size, hardware),
        frozen=_estimate_frozen(config, size, hardware),
        runtime=_estimate_runtime(config, batch_plan.shape.world_size, size, hardware),
    )


def estimate_states(config: RunConfig, batch_plan: BatchPlan, size: PipelineSize) -> ModelStates | None:
    """The model states of one rank; None where the UNet's parameters are not known."""
    counts = count_parameters(config, size)
    if counts is None:
        return None
    world, accumulation = batch_plan.shape.world_size, batch_plan.accumulation
    return estimate_model_states(config, counts.trained, world, frozen=counts.frozen, accumulation=accumulation)


def count_sample(config: RunConfig, size: PipelineSize) -> Activations | None:
    """The activations of one sample; None where they are not known."""
    unet, vae = size.configs.get("unet"), size.configs.get("vae")
    if unet is None or vae is None or not vae.get("block_out_channels"):
        return None
    pixels = config.data.resolution  # of the square's side: no shape of the buckets has more pixels
    side = LatentShape.of_vae({"latent_channels": 4} | dict(vae), pixels, pixels).height
    tokens, width = TEXT_TOKENS * config.data.caption_chunks, count_width(config)
    recomputed = config.gradient_checkpointing
    kept = count_activations(unet, side, width=width, recomputed=recomputed, tokens=tokens)
    layers = list_unet_layers(unet)
    if config.lora is None or kept is None:
        return kept
    if layers is None:
        return None
    more = count_adapter_activations(config.lora, layers, side, width=width, recomputed=recomputed, tokens=tokens)
    return Activations(kept.kept + more.kept, kept.recomputed + more.recomputed)


def count_default_workers(cpus: int) -> int:
    """Workers of a rank whose config names no number: a CPU each but for the one that trains."""
    return min(MOST_WORKERS, max(1, cpus - 1))


def count_planned_workers(config: RunConfig, hardware: Hardware) -> int:
    """Processes that a rank will start to decode images, at most where its CPUs are not known."""
    if config.data.workers is not None:
        return config.data.workers
    return MOST_WORKERS if hardware.cpus_per_rank is None else count_default_workers(hardware.cpus_per_rank)


def count_vae_slices(samples: int, pixels: int) -> int:
    """Slices, as equal as can be, in which the images of a micro-batch are encoded, each of so many pixels: never one
    image alone, for which kernels take another path, and other bits come of it."""
    return max(1, min(samples // 2, samples * pixels // VAE_SLICE_PIXELS))


def _estimate_activations(config: RunConfig, micro_batch: int, size: PipelineSize, hardware: Hardware) -> int | None:
    """The larger one of what a micro-batch's pass keeps and what the VAE needs to encode its images before; where they
    are cached, they were encoded before there was anything else."""
    sample = count_sample(config, size)
    if sample is None:
        return None
    if config.data.cached != "off":
        return micro_batch * sample.peak
    pixel: int = count_vae_width(config, hardware) * VAE_TENSORS * size.configs["vae"]["block_out_channels"][0]
    slices = [
        math.ceil(micro_batch / count_vae_slices(micro_batch, crop.pixels)) * crop.pixels
        for crop in list_crop_sizes(config.data)
    ]
    return max(micro_batch * sample.peak, max(slices) * pixel)


def _estimate_frozen(config: RunConfig, size: PipelineSize, hardware: Hardware) -> int | None:
    """The VAE and the text encoders, in the dtype that they compute in; but for those that the cache spares."""
    counts = {part: count for part, count in size.parameters.items() if part != "unet"}
    if "vae" not in counts or "text_encoder" not in counts:
        return None
    vae, text_encoders = counts.pop("vae"), sum(counts.values())
    if config.pictures is None:  # which load what was spared
        vae = vae if config.data.cached == "off" else 0
        text_encoders = 0 if config.data.cached == "all" else text_encoders
    return count_vae_width(config, hardware) * vae + count_width(config) * text_encoders


def count_vae_width(config: RunConfig, hardware: Hardware) -> int:
    """Bytes of one element. In fp16 its activations would overflow: bf16 where GPUs have it, else fp32."""
    if config.precision == "fp16":
        return 2 if hardware.has_bf16 else 4
    return count_width(config)


def _estimate_runtime(config: RunConfig, world: int, size: PipelineSize, hardware: Hardware) -> int:
    if not hardware.gpus:  # all in one memory: the process, its workers, and what a save copies the states to
        counts = count_parameters(config, size)
        saved = math.ceil(estimate_checkpoint(config, counts.trained if counts else 0) / world)
        return PROCESS + count_planned_workers(config, hardware) * WORKER + saved
    buckets = BUCKETS if choose_engine(config) == "deepspeed" else 0
    return CUDA_CONTEXT + WORKSPACES + buckets + (COMMUNICATORS if world > 1 else 0)
