"""What ranks compute on, as far as it is known before they start."""

import re
from dataclasses import dataclass

from configs.errors import UserError

GIB = 2**30
MARGIN = 0.08  # of a memory that is left free: a caching allocator cannot fill it to the last byte
_BF16 = (8, 0)  # compute capability from which on GPUs compute in bf16 (NVIDIA's CUDA C++ Programming Guide)


@dataclass(frozen=True)
class Hardware:
    """The nodes of one cluster, or this machine; None is unknown."""

    gpus: bool = True  # whether ranks compute on GPUs
    gpu_memory: float | None = None  # GiB of one GPU
    compute_capability: str | None = None  # of the GPUs, such as 9.0
    host_memory: float | None = None  # GiB of a node that a job may use
    cpus_per_rank: int | None = None

    @property
    def has_bf16(self) -> bool | None:
        """Whether ranks compute in bf16 without emulation; on CPUs they do not."""
        if not self.gpus:
            return False
        return None if self.compute_capability is None else is_bf16_capable(self.compute_capability)

    def measure_device(self, ranks: int) -> float | None:
        """Bytes of what one of `ranks` ranks on a node has to itself: its GPU, or its share of the node's memory."""
        if self.gpus:
            return None if self.gpu_memory is None else self.gpu_memory * GIB
        return None if self.host_memory is None else self.host_memory * GIB / ranks


def is_bf16_capable(compute_capability: str) -> bool:
    """Whether a GPU with this compute capability, such as 8.6, computes in bf16."""
    major, _, minor = compute_capability.partition(".")
    return (int(major), int(minor or 0)) >= _BF16


def parse_memory(text: str) -> float | None:
    """GiB of a memory as sbatch --mem has it: MiB, or with K, M, G or T; None for all of a node's (0)."""
    match = re.fullmatch(r"(\d+)([KMGT]?)B?", text.upper())
    if match is None or not int(match[1]):
        return None
    return int(match[1]) * 1024.0 ** ("KMGT".index(match[2] or "M") - 2)


def parse_gpu_memory(text: str) -> float:
    """GiB of a GPU's memory, written as 80GiB or 79.6. Raises UserError for another unit: a GB of one maker's leaflet
    is 7 % less."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:GiB)?", text, re.IGNORECASE)
    if match is None or not float(match[1]):
        raise UserError(f"--gpu-memory {text}: is no size in GiB; write it as 80GiB (nvidia-smi's MiB / 1024)")
    return float(match[1])
