"""The run's folder tells what decides how a rank computes, and no secret."""

import pytest
import torch

from train.process_group import World
from train.reporting import environment
from train.reporting.environment import select_variables


def test_values_of_what_computes_and_names_of_the_rest():
    given = {"NCCL_DEBUG": "INFO", "RANK": "0", "HF_TOKEN": "hf_secret", "AWS_SECRET_ACCESS_KEY": "s", "HOME": "/root"}
    given |= {"HF_ENDPOINT": "https://me:word@mirror", "OMP_NUM_THREADS": "1", "RANKING": "x"}
    told = {"NCCL_DEBUG": "INFO", "RANK": "0", "OMP_NUM_THREADS": "1"}
    assert select_variables(given) == {name: told.get(name) for name in given}


@pytest.mark.parametrize(
    "name",
    ["SLURM_JWT", "HF_PAT", "LOCKSTEP_PW", "TORCH_CREDS", "NCCL_MIRROR_PW", "CUDA_LICENSE", "DS_WEBHOOK", "PYTHON_PIN"],
)
def test_a_name_that_looks_like_ours_may_hold_a_secret(name):
    """A cluster's login token does not say `token`; what nobody has thought of is not told."""
    assert select_variables({name: "sesame"}) == {name: None}


def test_a_password_in_an_address_is_not_told():
    assert select_variables({"MASTER_ADDR": "me:word@proxy"}) == {"MASTER_ADDR": None}


def test_what_decides_how_a_rank_computes_is_told():
    """On a GPU node of a cluster, and on a laptop."""
    names = (
        "CUDA_VISIBLE_DEVICES CUBLAS_WORKSPACE_CONFIG NCCL_ALGO NCCL_SOCKET_IFNAME GLOO_SOCKET_IFNAME MKL_NUM_THREADS"
    )
    names += " OMP_NUM_THREADS PYTORCH_CUDA_ALLOC_CONF TORCH_NCCL_BLOCKING_WAIT DS_ACCELERATOR HF_HOME HF_HUB_OFFLINE"
    names += " LOCAL_RANK RANK WORLD_SIZE SLURM_JOB_ID SLURM_JOB_NODELIST SLURM_PROCID LOCKSTEP_ATTEMPT LD_LIBRARY_PATH"
    given = dict.fromkeys(names.split(), "1")
    assert select_variables(given) == given


def test_what_decides_how_gpus_compute_is_told(tmp_path, monkeypatch):
    """The GPU is faked: torch is told of it."""
    world = World(0, 0, 1, torch.device("cuda", 0), None, ["node1 GPU-5eed"])
    (tmp_path / "version").write_text(
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.133.20  Release Build  (dvs-builder@U22-I3)\n"
        "GCC version:  gcc version 12.3.0\n"
    )
    monkeypatch.setattr(environment, "_DRIVER", tmp_path / "version")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91002)
    monkeypatch.setattr(torch.cuda.nccl, "version", lambda: (2, 28, 9))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    told = environment.describe_gpus(world)
    assert (told["driver"], told["cuda"], told["cudnn"], told["nccl"]) == ("570.133.20", "13.0", 91002, "2.28.9")
    assert (told["device"], told["compute_capability"]) == ("NVIDIA H100 80GB HBM3", "9.0")
    assert told["gpus"] == ["node1 GPU-5eed"]
    assert set(told["fp32_precision"]) == {"matmul", "convolution"}
    (tmp_path / "version").write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19\n")
    assert environment.read_driver_version() == "535.104.05"
