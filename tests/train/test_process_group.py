"""Which device a rank takes, and what it says where there is none for it. The GPUs are faked: torch is told of them."""

import os
import re
import subprocess
import sys
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from configs.errors import UserError
from slurm.recovery.cause import classify_error
from store.run import gpus
from train import process_group


@pytest.fixture
def node(monkeypatch):
    """Make this process rank `local_rank` of a node on which torch finds `visible` GPUs."""

    def fake(visible: int, local_rank: int = 0, promised: str = "1", cuda: str | None = "13.0") -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: visible > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
        monkeypatch.setattr(torch.version, "cuda", cuda)
        for name, value in {"RANK": 0, "LOCAL_RANK": local_rank, "WORLD_SIZE": 1, gpus.GPUS_VARIABLE: promised}.items():
            monkeypatch.setenv(name, str(value))

    return fake


def blamed(error: BaseException) -> bool:
    """Whether the node would be left out for this error, as its rank's report words it."""
    return classify_error(f"{type(error).__name__}: {error}") == "device"


@pytest.mark.parametrize(("visible", "local_rank"), [(1, 3), (4, 4)])
def test_a_rank_without_a_gpu_of_its_own_is_told_so_and_its_node_is_not_blamed(node, visible, local_rank):
    node(visible, local_rank)
    with pytest.raises(UserError, match=rf"rank {local_rank} of those on \S+ finds {visible} GPU") as refused:
        process_group.init_process_group(1)
    assert "--gpu-bind=none" in str(refused.value)
    assert not blamed(refused.value)


def test_a_gpu_node_without_working_cuda_is_an_error_and_blamed(node):
    node(0)
    with pytest.raises(process_group.NoDevice, match=r"no CUDA device works on \S+ \(torch .*, CUDA 13.0\)") as refused:
        process_group.init_process_group(1)
    assert blamed(refused.value)


def test_a_torch_without_cuda_is_the_users_to_mend_and_no_nodes_fault(node):
    node(0, cuda=None)
    with pytest.raises(UserError, match=r"is built without CUDA.*gpus: none in the site profile, or") as refused:
        process_group.init_process_group(1)
    assert not blamed(refused.value)


def test_a_rank_that_is_to_use_the_cpu_uses_it_whatever_there_is(node, monkeypatch):
    for visible in (0, 4):
        node(visible, promised="0")
        assert process_group.choose_device() == torch.device("cpu")
    node(0, promised="")
    assert process_group.choose_device() == torch.device("cpu"), "nothing is promised, and there is none"
    node(4, local_rank=3, promised="")
    assert process_group.choose_device() == torch.device("cuda", 3)


def test_each_rank_takes_the_gpu_of_its_own_number(node, monkeypatch):
    taken = []

    def stop(device: torch.device) -> None:
        taken.append(device)
        raise InterruptedError  # the rest of join needs a real one

    monkeypatch.setattr(torch.cuda, "set_device", stop)
    for local_rank in (0, 3):
        node(4, local_rank)
        with pytest.raises(InterruptedError):
            process_group.init_process_group(1)
    assert taken == [torch.device("cuda", 0), torch.device("cuda", 3)]


def test_local_runs_must_find_the_gpus_that_the_driver_lists(tmp_path, monkeypatch):
    monkeypatch.setattr(gpus, "_DRIVER", tmp_path)
    assert not gpus.must_find_gpu({})
    (tmp_path / "0000:01:00.0").mkdir()
    assert gpus.count_gpus() == 1
    assert gpus.must_find_gpu({})
    assert gpus.must_find_gpu({"CUDA_VISIBLE_DEVICES": "0"})
    assert not gpus.must_find_gpu({"CUDA_VISIBLE_DEVICES": ""}), "who hides them wants the CPU"
    assert not gpus.must_find_gpu({gpus.GPUS_VARIABLE: "0"})


def test_the_word_for_srun_is_in_every_job_that_asks_for_gpus():
    from slurm.job.request import site_parameters
    from slurm.site import Site

    found = {
        kind: " ".join(site_parameters(Site(gpus=kind), 4)["srun_args"]) for kind in ("gpus-per-node", "gres", "none")
    }
    assert {kind: bool(re.search("--gpu-bind=none", words)) for kind, words in found.items()} == {
        "gpus-per-node": True,
        "gres": True,
        "none": False,
    }


def test_two_ranks_on_one_gpu_are_refused_before_nccl_is_asked():
    store = dist.HashStore()
    for rank, gpu in enumerate(["node1 GPU-a", "node1 GPU-b", "node2 GPU-a2"]):
        store.set(f"gpu/{rank}", gpu)
    gpus = ["node1 GPU-a", "node1 GPU-b", "node2 GPU-a2", "node2 GPU-c"]
    assert process_group.list_gpus(store, 3, 4, "node2 GPU-c") == gpus
    with pytest.raises(UserError, match=r"^ranks 1 and 3 have the same GPU \(node1 GPU-b, node1 GPU-b\)") as refused:
        process_group.list_gpus(store, 3, 4, "node1 GPU-b")
    assert "--gpu-bind=none" in str(refused.value)
    assert not blamed(refused.value)


_JOINED = """
import pickle, sys
from datetime import timedelta
from pathlib import Path
import torch, torch.distributed as dist
from train import process_group

folder = Path(sys.argv[1])
process_group.keep_flight_recorder(folder)
world = process_group.init_process_group(1, process_group.choose_timeout(1000))
for group in (world.cpu_group, dist.new_group()):
    assert group._get_backend(torch.device("cpu")).options._timeout == timedelta(seconds=4000)
world.sum([1.0])
assert process_group.dump_flight_recorder(folder, world.rank) == 1
entries = pickle.loads((folder / "rank-0").read_bytes())["entries"]
print([entry["profiling_name"] for entry in entries], {entry["timeout_ms"] for entry in entries})
"""


def test_every_group_waits_as_long_and_the_last_collectives_are_written(tmp_path):
    """Also a group for which nobody names a time-out, as DeepSpeed and FSDP2 make theirs."""
    command = [sys.executable, "-c", _JOINED, str(tmp_path / "flight-recorder")]
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "['gloo:all_reduce'] {4000000}"


def test_a_collective_waits_longer_than_the_watchdog():
    assert process_group.choose_timeout(600) == timedelta(hours=1)
    assert process_group.choose_timeout(3600) == timedelta(hours=4)
