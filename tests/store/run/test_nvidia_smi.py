"""What NVIDIA's tool tells of the GPUs, by a tool that answers what the real one does."""

import os
from pathlib import Path

import pytest

from configs.schema import RunConfig
from configs.solve.hardware import Hardware
from launcher.local.backend import LocalBackend
from store.run.gpus import GPUS_VARIABLE
from store.run.nvidia_smi import GpuFacts, find_smallest, query_gpus

H100, A100, V100 = (
    GpuFacts(79.6, "9.0", "550.54.15"),
    GpuFacts(40.0, "8.0", "550.54.15"),
    GpuFacts(32.0, "7.0", "470.1"),
)
CONFIG = RunConfig.model_validate({"name": "a", "model": "m", "data": {"images": "i"}})


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """nvidia-smi, still to be written, the only command there is."""
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("CUDA_VISIBLE_DEVICES", GPUS_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "nvidia-smi"


def answers(tool: Path, *lines: str, code: int = 0) -> None:
    said = "\n".join(f"echo '{line}'" for line in lines)
    tool.write_text(f"#!/bin/sh\n{said}\nexit {code}\n")
    tool.chmod(0o755)


def test_every_gpu_is_told(tool: Path) -> None:
    answers(tool, "81559, 9.0, 550.54.15", "40960, 8.0, 550.54.15")
    assert query_gpus() == [H100, A100]


def test_a_tool_that_is_missing_fails_or_does_not_know_tells_nothing(tool: Path) -> None:
    assert query_gpus() == []
    answers(tool, "Failed to initialize NVML: Driver/library version mismatch", code=18)
    assert query_gpus() == []
    answers(tool, "No devices were found")
    assert query_gpus() == []
    answers(tool, "[N/A], 12.1, 580.95.05", "81559, 9.0, 550.54.15")  # memory that is shared with the host
    assert query_gpus() == [H100]


def test_the_smallest_of_each_is_what_every_gpu_has() -> None:
    assert find_smallest([H100, V100, A100]) == (32.0, "7.0")
    assert find_smallest([GpuFacts(24.0, "12.0", "1"), GpuFacts(80.0, "9.0", "1")]) == (24.0, "9.0")
    assert find_smallest([]) == (None, None)


def test_this_machine_s_hardware(tool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers(tool, "81559, 9.0, 550.54.15")
    found, cpus = LocalBackend().find_hardware(CONFIG), len(os.sched_getaffinity(0))
    assert found.host_memory is not None
    assert found == Hardware(True, 79.6, "9.0", found.host_memory, cpus)
    assert LocalBackend(ranks=2 * cpus).find_hardware(CONFIG).cpus_per_rank == 1
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert LocalBackend().find_hardware(CONFIG) == Hardware(False, None, None, found.host_memory, cpus)
