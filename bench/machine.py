"""What a figure was measured on, how ranks are started for it, and where it is written down."""

import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results"
MEASURED = ("train", "configs", "bench")  # folders whose uncommitted changes a result names
PACKAGES = (
    "torch",
    "deepspeed",
    "diffusers",
    "transformers",
    "accelerate",
    "numpy",
    "pillow",
    "kornia-rs",
    "pyarrow",
    "datasets",
)
# On a CPU DeepSpeed allocates and frees gigabytes in every step; fetching these pages from the kernel each time took up
# to half of it. With this malloc keeps them, as the GPU's allocator does; every contestant gains.
KEEP_PAGES = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**36)}


def make_environment(device: str, threads: int | None = None) -> dict[str, str]:
    """This process's environment with what a program that measures on `device` needs; `threads` of OpenMP."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment |= {"DS_ACCELERATOR": device, "PYTHONWARNINGS": "ignore::FutureWarning"}
    if device == "cpu":
        environment |= {"CUDA_VISIBLE_DEVICES": ""}
    else:
        environment |= {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}  # as a rank has it
    if threads is not None:
        environment |= {"OMP_NUM_THREADS": str(threads)}
    return environment


def run_ranks(module: str, ranks: int, device: str, options: dict[str, Any], log: Path) -> None:
    """Run `module` on `ranks` ranks with `options` as its argument, to the end. Ends this program where one fails."""
    environment = make_environment(device, 1 if device == "cpu" else None)
    if device == "cpu":
        environment |= KEEP_PAGES
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    command += ["-m", module, json.dumps(options)]
    with open(log, "w") as output:
        done = subprocess.run(command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT)
    if done.returncode:
        sys.exit(log.read_text()[-8000:])


def describe_machine() -> dict[str, Any]:
    """Commit, versions and processor."""
    models = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    return {
        "commit": _git("rev-parse", "HEAD"),
        "changed": (_git("status", "--short", *MEASURED) or "").splitlines(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "cpu": models[0] if models else platform.machine(),
        "cpus": len(os.sched_getaffinity(0)),
        "gpu": _describe_gpu() if torch.cuda.is_available() else None,
    }


def _git(*words: str) -> str | None:
    """None where the tree came without its history."""
    try:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _describe_gpu() -> dict[str, Any]:
    card = torch.cuda.get_device_properties(0)
    return {
        "name": card.name,
        "memory_gib": round(card.total_memory / 2**30, 1),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }


def summarize(values: Sequence[float], digits: int = 4) -> dict[str, float]:
    """Median and quartiles."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return {
        "median": round(middle, digits),
        "low": round(low, digits),
        "high": round(high, digits),
        "pairs": len(values),
    }


def write_result(name: str, record: dict[str, Any], folder: Path = RESULTS) -> Path:
    """Write `record` with this machine's description as NAME-DATE.json into `folder`; answers the file."""
    now = datetime.now(UTC)
    path = folder / f"{name}-{now:%Y-%m-%d}.json"
    folder.mkdir(parents=True, exist_ok=True)
    whole = {"time": f"{now:%Y-%m-%dT%H:%M:%SZ}", **describe_machine(), **record}
    path.write_text(json.dumps(whole, indent=1) + "\n")
    return path
