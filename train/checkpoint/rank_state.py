"""What one rank saves: its fragments by their names, where each lies, and room for a copy of all of them."""

import contextlib

import torch

from store.checkpoint.fragment_file import StoredFragment
from train.engines.base import Engine
from train.engines.ema import Ema


class RankState:
    """Made once, before the first step, so that no save allocates anything: the room is exact, and all its pages are
    there. Where values come from a GPU it is page-locked, or copies would hold up the host.

    `pieces`, `sources` and `copies` go together: a fragment, the engine's own storage of it, and its part of the room.
    `replicas` are what the ranks hold alike.
    """

    def __init__(self, engine: Engine, ema: Ema | None, replicas: list[torch.Tensor]):
        values = {key: [engine.tensor(fragment, key) for fragment in engine.owned] for key in engine.state_keys}
        if ema is not None:
            values["ema"] = ema.averages
        self.kinds = tuple(values)
        self.pieces = [
            StoredFragment(kind, fragment.name, fragment.offset, fragment.length)
            for kind in values
            for fragment in engine.owned
        ]
        self.sources = [tensor for tensors in values.values() for tensor in tensors]
        self.replicas = replicas
        lengths = [piece.length for piece in self.pieces]
        self.size = 4 * sum(lengths)  # bytes
        self._room = torch.empty(sum(lengths)).zero_()  # written once, or its pages would come with the first save
        self.copies = list(self._room.split(lengths))
        on_gpu = next((source.device for source in self.sources if source.is_cuda), None)
        self._is_locked = on_gpu is not None and self._lock_pages(on_gpu)

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
