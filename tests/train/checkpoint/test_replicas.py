"""What ranks hold alike is compared at every save: one flipped bit ends the run, and names the rank and its node."""

import json
import re
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from configs.errors import LockstepError
from slurm.recovery.cause import find_cause
from store.checkpoint import checkpoints
from tests.ranks import start_ranks
from tests.runs import new_run, next_attempt
from train.checkpoint.replicas import CorruptPeer, CorruptReplica, check_replicas, digest_sums, sum_bits
from train.resilience.failure import report_failure

PROGRAM = Path(__file__).parents[1] / "faulty_attempt.py"


@pytest.mark.parametrize(
    "settings", [{"zero": 0, "precision": "fp32"}, {"zero": 2, "precision": "bf16", "lora": True}], ids=["unet", "lora"]
)
def test_one_bit_of_one_rank_ends_the_run(tmp_path, pipeline_folder, image_folder, settings):
    """It is the last weight's: under adapters one that is not trained, and in no checkpoint."""
    settings = settings | {"micro_batch": 2, "checkpoint": {"every_steps": 2, "keep": 9, "mode": "sync"}}
    run = new_run(tmp_path / "run", pipeline_folder, image_folder, **settings)
    attempt = next_attempt(run, 3)
    ranks = start_ranks(3, PROGRAM, run.path, attempt.number, json.dumps({"flip": [1, 4]}))
    assert ranks.wait() == [1, 1, 1], ranks.said()[-3000:]
    errors = re.findall(r"^train.checkpoint.replicas.(\w+): (.*)", ranks.said(), re.MULTILINE)
    assert [name for name, _ in errors] == ["CorruptPeer", "CorruptReplica", "CorruptPeer"], "by rank"
    named = f"rank 1 on {socket.gethostname()} parted from the other ranks: after step 4 its weights or optimizer"
    assert all(message.startswith(named) for _, message in errors)
    assert [checkpoint.step for checkpoint in checkpoints.list_checkpoints(run)] == [2], "none of it is kept"
    assert not list(run.checkpoints_path.glob("tmp-*"))


def test_the_parted_rank_s_node_is_suspect(tmp_path, pipeline_folder, image_folder):
    run = new_run(tmp_path / "run", pipeline_folder, image_folder, micro_batch=4)
    attempt = next_attempt(run, 3)
    for rank in range(3):
        with pytest.raises(LockstepError) as raised:
            check_replicas(world_of(rank, ["a", "b", "c"]), ["x", "y", "x"], 4)
        report_failure(attempt, rank, raised.value)
    cause = find_cause(attempt)
    assert (cause.rank, cause.suspects_node, cause.secondary_failures) == (1, True, (0, 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [1, 7, (1 << 20) + 3])
def test_every_bit_counts(dtype: torch.dtype, size: int) -> None:
    values = torch.randn(size + 1).to(dtype)[1:]  # as in the middle of a flat tensor
    before = digest_sums(sum_bits([values, values]))
    assert digest_sums(sum_bits([values.clone(), values])) == before, "wherever it lies"
    words = values.view({2: torch.int16, 4: torch.int32}[values.element_size()])
    for place in (0, size // 2, size - 1):
        for bit in range(8 * values.element_size()):
            flipped = torch.tensor([1 << bit], dtype=torch.int64).to(words.dtype)
            words[place] ^= flipped[0]
            assert digest_sums(sum_bits([values, values])) != before
            words[place] ^= flipped[0]
    assert digest_sums(sum_bits([values, values])) == before


def world_of(rank: int, hosts: list[str]) -> SimpleNamespace:
    return SimpleNamespace(rank=rank, gather=lambda _: hosts)


def test_a_tie_blames_nobody() -> None:
    for rank in range(2):
        with pytest.raises(LockstepError, match=r"no majority tells .* \(rank 0 on a, rank 1 on b\)") as raised:
            check_replicas(world_of(rank, ["a", "b"]), ["x", "y"], 3)
        assert type(raised.value) is LockstepError


def test_several_may_have_parted_and_some_say_nothing() -> None:
    digests = ["x", "y", "x", None, "x", "z"]
    hosts = list("abcdef")
    kinds = {0: CorruptPeer, 1: CorruptReplica, 3: CorruptPeer, 5: CorruptReplica}
    for rank, kind in kinds.items():
        with pytest.raises(kind, match=r"^rank 1 on b and rank 5 on f parted from the other ranks: after step 3"):
            check_replicas(world_of(rank, hosts), digests, 3)
    check_replicas(world_of(0, hosts), ["x", None, "x", "x", "x", None], 3)
