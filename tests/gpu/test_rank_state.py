"""What a save copies from a GPU goes into page-locked memory."""

import pytest
import torch

from tests.gpu.devices import on_gpu
from tests.train.checkpoint.test_rank_state import make_engine
from train.checkpoint.rank_state import RankState


@pytest.mark.parametrize("device", [on_gpu()])
def test_a_gpu_copies_into_it_beside_the_host(device: str) -> None:
    engine = make_engine(device)
    state = RankState(engine, None, [])
    assert all(copy.is_pinned() for copy in state.copies)
    state.copy()
    torch.cuda.synchronize()
    masters = [engine.weights(fragment).cpu() for fragment in engine.owned]
    wanted = [*masters, *(-master for master in masters)]  # and what the engine answers for its other key
    assert all(torch.equal(copy, values) for copy, values in zip(state.copies, wanted, strict=True))
    state.close()
    assert not state.copies[0].is_pinned()
