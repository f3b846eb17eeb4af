"""What NVIDIA's own tool tells of this machine's GPUs, without torch or CUDA."""

import subprocess
from dataclasses import dataclass

_COMMAND = ("nvidia-smi", "--query-gpu=memory.total,compute_cap,driver_version", "--format=csv,noheader,nounits")
_PATIENCE = 60  # seconds: without persistence mode the driver first wakes the GPUs


@dataclass(frozen=True)
class GpuFacts:
    """One GPU."""

    memory: float  # GiB
    compute_capability: str  # such as 9.0
    driver: str


def query_gpus() -> list[GpuFacts]:
    """Of every GPU; empty where the tool is missing, fails or hangs."""
    try:
        done = subprocess.run(_COMMAND, capture_output=True, text=True, check=True, timeout=_PATIENCE)
    except (OSError, subprocess.SubprocessError):
        return []
    return [gpu for gpu in map(_parse_gpu, done.stdout.splitlines()) if gpu is not None]


def _parse_gpu(line: str) -> GpuFacts | None:
    """`81559, 9.0, 550.54.15`; None where the tool does not know a value and writes [N/A]."""
    values = [value.strip() for value in line.split(",")]
    if len(values) != 3 or not values[0].isdecimal() or not values[1].replace(".", "", 1).isdecimal():
        return None
    return GpuFacts(round(int(values[0]) / 1024, 1), values[1], values[2])


def find_smallest(gpus: list[GpuFacts]) -> tuple[float | None, str | None]:
    """GiB and compute capability that every one of these GPUs has at least; None where there is none."""
    if not gpus:
        return None, None
    capability = min((gpu.compute_capability for gpu in gpus), key=lambda text: [int(n) for n in text.split(".")])
    return min(gpu.memory for gpu in gpus), capability
