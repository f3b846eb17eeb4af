"""Whether ranks must find a GPU: whoever starts them says so, for a rank that finds none cannot tell why."""

import os
from collections.abc import Mapping
from pathlib import Path

GPUS_VARIABLE = (
    "LOCKSTEP_GPUS"  # of a rank: 1 where it must find a GPU, 0 where it is to use the CPU, whatever there is
)
_DRIVER = Path("/proc/driver/nvidia/gpus")


def count_gpus() -> int:
    """GPUs of this machine as NVIDIA's driver lists them, whether CUDA works on them or not."""
    return len(list(_DRIVER.iterdir())) if _DRIVER.is_dir() else 0


def must_find_gpu(environment: Mapping[str, str]) -> bool:
    """Whether a process with `environment` that starts on this machine has GPUs that it was not told to leave alone."""
    return count_gpus() > 0 and not are_gpus_hidden(environment)


def count_visible_gpus(environment: Mapping[str, str]) -> int:
    """GPUs of this machine that CUDA shows a process with `environment`."""
    if are_gpus_hidden(environment):
        return 0
    listed = environment.get("CUDA_VISIBLE_DEVICES")
    return count_gpus() if listed is None else min(count_gpus(), len(listed.split(",")))


def are_gpus_hidden(environment: Mapping[str, str]) -> bool:
    """Whether a process with `environment` is told to leave GPUs alone."""
    return environment.get("CUDA_VISIBLE_DEVICES", "0") in ("", "-1") or environment.get(GPUS_VARIABLE) == "0"


def is_gpu_promised() -> bool | None:
    """Whether this rank must find a GPU; False: it is to use the CPU; None: it takes what there is."""
    return {"1": True, "0": False}.get(os.environ.get(GPUS_VARIABLE, ""))
