"""What a step makes the host wait for, and who may have a GPU."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.engines import SETTINGS
from tests.gpu.devices import LIMIT, gpu_environment, on_gpu, run_program
from tests.ranks import ROOT

CASE = {"mode": "case", "unet": "tiny", "side": 8, "micro_batch": 2, "accumulation": 2, "tiny": True, "peak": None}
CASE |= {"save": True, "compile": False, "gradient_checkpointing": False}
# Reads of the verdict whether the gradient is finite, and what DeepSpeed asks besides.
WAITS = {"zero0": 1, "reshard": 2, "keep": 2, "zero1": 6, "zero2": 8, "zero3": 12}
JOIN = "from train import process_group; process_group.init_process_group(2)"


def measure(device: str, engine: str, folder: Path) -> dict:
    precision = "fp32" if engine == "zero0" else "bf16"
    options = CASE | {"engine": engine, "precision": precision, "device": device, "records": str(folder)}
    run_program(device, ROOT / "bench/gpu_case.py", json.dumps(options))
    return json.loads((folder / "found.json").read_text())


@pytest.mark.parametrize(("device", "engine"), [("cpu", "zero0"), *(on_gpu(name) for name in SETTINGS)])
def test_a_step_makes_the_host_wait_for_the_device_a_few_times_only(tmp_path, device, engine):
    found = measure(device, engine, tmp_path)
    assert found["counts"]["waits" if device == "cuda" else "reads"] <= WAITS[engine]
    assert len(found["save_stall_s"]) == 2


@pytest.mark.parametrize("device", [on_gpu()])
def test_two_ranks_on_one_gpu_are_refused(device):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    world = {"WORLD_SIZE": 2, "LOCAL_RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", JOIN],
            env=gpu_environment(RANK=rank, **world),
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    said = [rank.communicate(timeout=LIMIT)[1] for rank in ranks]
    assert all(rank.returncode for rank in ranks)
    assert any("have the same GPU" in text for text in said), said
