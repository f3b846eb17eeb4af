"""The run's folder tells what decides how a rank computes, and no secret."""

from train.environment import variables


def test_values_of_what_computes_and_names_of_the_rest():
    given = {"NCCL_DEBUG": "INFO", "RANK": "0", "HF_TOKEN": "hf_secret", "AWS_SECRET_ACCESS_KEY": "s", "HOME": "/root"}
    given |= {"HF_ENDPOINT": "https://me:word@mirror", "OMP_NUM_THREADS": "1", "RANKING": "x"}
    told = {"NCCL_DEBUG": "INFO", "RANK": "0", "OMP_NUM_THREADS": "1"}
    assert variables(given) == {name: told.get(name) for name in given}
