"""What one rank saves: its fragments by their names, and room for a copy of all of them."""

import contextlib

import torch

from store.checkpoint.fragment_file import StoredFragment
from train.engines.base import Engine, Fragment
from train.engines.ema import Ema


class RankState:
    """Made once, before the first step, so that no save allocates anything but what an engine needs to read a state
    that is not fp32: the room is exact, and all its pages are there. Where values come from a GPU it is page-locked, or
    copies would hold up the host.

    `pieces` and `copies` go together: a fragment, and its part of the room. `replicas` are what the ranks hold alike.
    """

    def __init__(self, engine: Engine, ema: Ema | None, replicas: list[torch.Tensor]):
        self._engine, self._ema = engine, ema
        fragments = {key: engine.list_saved(key) for key in engine.state_keys}
        self._states = [(key, fragment) for key, found in fragments.items() for fragment in found]
        if ema is not None:
            fragments["ema"] = engine.owned
        self.kinds = tuple(fragments)
        self.layouts = engine.layouts
        self.pieces = [_store(kind, fragment) for kind, found in fragments.items() for fragment in found]
        self.replicas = replicas
        masters = [engine.weights(fragment) for fragment in engine.owned]
        self.devices = {tensor.device for tensor in (*masters, *replicas) if tensor.is_cuda}
        lengths = [piece.length for piece in self.pieces]
        self.size = 4 * sum(lengths)  # bytes
        self._room = torch.empty(sum(lengths)).zero_()  # written once, or its pages would come with the first save
        self.copies = list(self._room.split(lengths))
        on_gpu = next((master.device for master in masters if master.is_cuda), None)
        self._is_locked = on_gpu is not None and self._lock_pages(on_gpu)

    def copy(self) -> None:
        """Take all values as they are now; those on a GPU come with its current stream, for which nobody waits."""
        copies = iter(self.copies)
        for key, fragment in self._states:
            self._engine.read(key, fragment, next(copies))
        for average in self._ema.averages if self._ema is not None else ():
            next(copies).copy_(average, non_blocking=True)

    def _lock_pages(self, device: torch.device) -> bool:
        """torch's own pinned memory would be rounded up to a power of two."""
        cudart = torch.cuda.cudart()
        error = cudart.cudaHostRegister(self._room.data_ptr(), self.size, 0)
        if not int(error):
            return True
        why = cudart.cudaGetErrorString(error)
        print(f"ALARM: {self.size} bytes could not be page-locked ({why}): saves slow the steps down", flush=True)
        with contextlib.suppress(RuntimeError):  # CUDA keeps the error for the next kernel, which takes it away
            torch.zeros(1, device=device)
        return False

    def close(self) -> None:
        """Give the page-locked memory back, which must not be used any more."""
        if self._is_locked:
            torch.cuda.cudart().cudaHostUnregister(self._room.data_ptr())
            self._is_locked = False


def _store(kind: str, fragment: Fragment) -> StoredFragment:
    return StoredFragment(kind, fragment.name, fragment.offset, fragment.length)
