"""The devices that a test goes through: a CPU, which proves its body in every run of the tests, and a GPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from store.run.gpus import GPUS_VARIABLE
from store.run.run_dir import Attempt, RunDir
from tests.ranks import ROOT, run_ranks

LIMIT = 120  # seconds of one program on a GPU, where a collective that waits for ever must not take the machine
GPU_MARKS = (pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"))
ATTEMPT = ROOT / "tests/train/faulty_attempt.py"


def on_gpu(*values: object) -> object:
    """A parameter of a test that needs a GPU; its first value is the device."""
    return pytest.param("cuda", *values, marks=GPU_MARKS)


def gpu_environment(**variables: object) -> dict[str, str]:
    """Of a rank on the GPU."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])  # bench.gpu adds packages
    environment = os.environ | {"DS_ACCELERATOR": "cuda", GPUS_VARIABLE: "1", "PYTHONPATH": path}
    environment |= {"OMP_NUM_THREADS": "2"}  # tests run side by side
    return environment | {name: str(value) for name, value in variables.items()}


def run_program(device: str, program: Path, *arguments: object) -> str:
    """Run one rank of `program` on `device` to its end, and answer what it printed."""
    if device == "cpu":
        return run_ranks(1, program, *arguments)
    command = [sys.executable, str(program), *map(str, arguments)]
    done = subprocess.run(
        command, env=gpu_environment(RANK=0, LOCAL_RANK=0, WORLD_SIZE=1), capture_output=True, text=True, timeout=LIMIT
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def train(device: str, run: RunDir, attempt: Attempt, **fault: object) -> None:
    """Make `attempt` with `fault` (see tests/train/faulty_attempt.py) on one rank on `device`."""
    run_program(device, ATTEMPT, run.path, attempt.number, json.dumps(fault))
