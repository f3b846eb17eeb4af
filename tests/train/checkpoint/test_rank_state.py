"""The room of a rank's copies: exact, made once, page-locked where its values come from a GPU."""

from types import SimpleNamespace

import pytest
import torch

from train.checkpoint.rank_state import RankState
from train.engines.base import Fragment

OWNED = [Fragment("a", 0, 5), Fragment("b", 3, 1000)]


def make_engine(device: str) -> SimpleNamespace:
    """The part of an engine that is looked at, its values on `device`."""
    masters = {fragment: torch.randn(fragment.length, device=device) for fragment in OWNED}
    return SimpleNamespace(
        owned=OWNED,
        state_keys=("weights", "exp_avg"),
        layouts={},
        list_saved=lambda key: OWNED,
        weights=masters.__getitem__,
        read=lambda key, fragment, out: out.copy_(masters[fragment] if key == "weights" else -masters[fragment]),
    )


class Cuda:
    """What torch.cuda.cudart() answers, which locks `answer == 0`."""

    def __init__(self, answer: int):
        self.answer, self.calls = answer, []

    def cudaHostRegister(self, address: int, size: int, flags: int) -> int:
        self.calls.append((address, size, flags))
        return self.answer

    def cudaGetErrorString(self, error: int) -> str:
        return f"error {error}"

    def cudaHostUnregister(self, address: int) -> int:
        self.calls.append(address)
        return 0


def test_the_room_holds_each_fragment_and_no_more() -> None:
    state = RankState(make_engine("cpu"), None, [])
    assert [(piece.kind, piece.name, piece.length) for piece in state.pieces] == [
        ("weights", "a", 5),
        ("weights", "b", 1000),
        ("exp_avg", "a", 5),
        ("exp_avg", "b", 1000),
    ]
    assert state.size == 4 * 2 * 1005
    state.copy()
    assert all(
        torch.equal(weights, -moment) for weights, moment in zip(state.copies[:2], state.copies[2:], strict=True)
    )
    assert {copy.untyped_storage().nbytes() for copy in state.copies} == {state.size}
    assert not any(copy.is_pinned() for copy in state.copies), "values in the host's memory need none"
    state.close()


@pytest.mark.parametrize("answer", [0, 2])
def test_only_what_was_locked_is_given_back(monkeypatch: pytest.MonkeyPatch, capsys, answer: int) -> None:
    cuda = Cuda(answer)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: cuda)
    on_gpu = make_engine("cpu")
    on_gpu.state_keys = ("weights",)
    on_gpu.weights = lambda _: SimpleNamespace(is_cuda=True, device="cpu")
    state = RankState(on_gpu, None, [])
    assert cuda.calls == [(state.copies[0].data_ptr(), 4 * 1005, 0)]
    assert ("could not be page-locked (error 2)" in capsys.readouterr().out) == bool(answer)
    for _ in range(2):
        state.close()
    assert cuda.calls[1:] == ([state.copies[0].data_ptr()] if not answer else [])
