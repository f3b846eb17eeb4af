"""The run's folder tells what decides how a rank computes, and no secret."""

import pytest

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
