"""What a save copies from a GPU goes into page-locked memory."""

import pytest
import torch

from tests.gpu.devices import on_gpu
from tests.train.checkpoint.test_rank_state import make_engine
from train.checkpoint.rank_state import RankState


@pytest.mark.parametrize("device", [on_gpu()])
def test_a_gpu_copies_into_it_beside_the_host(device: str) -> None:
    state = RankState(make_engine(device), None, [])
    assert all(copy.is_pinned() for copy in state.copies)
    for copy, source in zip(state.copies, state.sources, strict=True):
        copy.copy_(source, non_blocking=True)
    torch.cuda.synchronize()
    assert all(torch.equal(c, s.cpu()) for c, s in zip(state.copies, state.sources, strict=True))
    state.close()
    assert not state.copies[0].is_pinned()
