"""What DistributedDataParallel is given: its buckets are the same from the first step on."""

import itertools
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel

from bench.unets import UNETS
from tests.ranks import run_ranks
from train.engines.ddp import _ForwardOrder

PROGRAM = Path(__file__).with_name("watch_buckets.py")
LARGER = {"mid_block_type": "UNetMidBlock2DCrossAttn"}


@pytest.fixture
def unet() -> UNet2DConditionModel:
    with torch.device("meta"):
        return UNet2DConditionModel(8, **(UNETS["tiny"] | LARGER))


def test_parameters_are_listed_as_a_pass_meets_them(unet: UNet2DConditionModel) -> None:
    names = {parameter: name for name, parameter in unet.named_parameters()}
    listed = [names[parameter] for parameter in _ForwardOrder(unet).parameters()]
    assert sorted(listed) == sorted(names.values()), "each once"
    parts = [part for part, _ in itertools.groupby(listed, lambda name: name.split(".")[0])]
    after = ["down_blocks", "mid_block", "up_blocks", "conv_norm_out", "conv_out"]
    assert parts == ["conv_in", "time_embedding", *after]
    blocks = [block for block, _ in itertools.groupby(listed, lambda name: ".".join(name.split(".")[:2]))]
    assert len(blocks) == len(set(blocks))


def test_a_module_without_a_middle_keeps_its_order() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 3))
    ordered = _ForwardOrder(module)
    assert list(ordered.parameters()) == list(module.parameters())
    x = torch.ones(1, 2)
    assert torch.equal(ordered(x), module(x))


def test_the_same_buckets_are_reduced_in_every_step() -> None:
    assert run_ranks(2, PROGRAM).count("the same buckets in 3 steps") == 2
