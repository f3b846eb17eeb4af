"""What an attempt ran with, for whoever wants to repeat it."""

import os
import platform
import re
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version

import torch

from configs.code_version import code_version
from configs.run_dir import Attempt, write_atomic, write_json
from train import distributed

PACKAGES = ("lockstep", "torch", "deepspeed", "diffusers", "transformers", "numpy", "pillow", "safetensors")
# Variables that decide how a rank computes; of all others only the names are told, for they may hold secrets.
_TOLD = re.compile(
    r"(CUDA|NCCL|GLOO|OMP|MKL|TORCH|PYTORCH|DS|HF|PYTHON|LOCKSTEP|SLURM|RANK|LOCAL_RANK|WORLD_SIZE)(_|$)"
)
_SECRET = re.compile(r"TOKEN|KEY|SECRET|PASS|CREDENTIAL|AUTH|COOKIE", re.I)


def record(attempt: Attempt, world: distributed.World) -> None:
    """Write `environment.json`, and what was changed in the code since its commit beside it. For rank 0."""
    code = asdict(code_version())
    if diff := code.pop("diff"):
        write_atomic(attempt.code_diff, diff + "\n")
    cuda = world.device.type == "cuda"
    found = {
        "code": code | {"changed": bool(diff)},
        "packages": {name: version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "host": platform.node(),
        "device": torch.cuda.get_device_name(world.device) if cuda else platform.processor() or platform.machine(),
        "world_size": world.size,
        "threads_per_rank": torch.get_num_threads(),
        "variables": variables(os.environ),
    }
    write_json(attempt.environment, found)


def variables(environment: Mapping[str, str]) -> dict[str, str | None]:
    """Every variable's name, with its value where it decides how a rank computes and cannot be a secret."""

    def told(name: str) -> bool:  # an address with an @ may hold a password
        return bool(_TOLD.match(name)) and not _SECRET.search(name) and "@" not in environment[name]

    return {name: environment[name] if told(name) else None for name in sorted(environment)}
