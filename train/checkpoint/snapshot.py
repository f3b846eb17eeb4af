"""One save on one rank, in the background: a consistent copy first, then the file."""

import math
import threading
import time
import traceback
from pathlib import Path

import torch

from store.checkpoint.fragment_file import write_fragments
from store.checkpoint.manifest import FileEntry, Manifest
from train.checkpoint.rank_state import RankState
from train.checkpoint.replicas import digest_sums, sum_bits


class Snapshot:
    """Copies `state` and writes the copy to `path`. What it copies must not change before `copied` is set.

    `manifest` is that of the checkpoint, without its files. The rest may be read once `done` is set.
    """

    def __init__(self, manifest: Manifest, path: Path, state: RankState):
        self.manifest, self.path, self.state = manifest, path, state
        self.copied, self.done = threading.Event(), threading.Event()
        self.outcome: FileEntry | str = f"{path}: was not written"  # the file, or what went wrong
        self.spoiled: str | None = None  # the first value that is not finite
        self.replicas: str | None = None  # digest of what all ranks hold alike
        self.seconds = 0.0  # that the copy and the file took
        self.ready = torch.cuda.Event() if state.devices else None
        if self.ready is not None:
            self.ready.record()  # what is queued on the device so far belongs to this step
        self.thread = threading.Thread(target=self._run, name=f"save-{manifest.identity.step}", daemon=True)
        self.thread.start()

    def _run(self) -> None:
        began = time.monotonic()
        try:
            self._copy()
            self.copied.set()
            self.spoiled = self._find_spoiled()
            if self.spoiled is None:
                values = [copy.numpy() for copy in self.state.copies]
                self.outcome = write_fragments(self.path, self.state.pieces, values, self.manifest.identity)
        except Exception as error:  # noqa: BLE001  (it costs this save, and its reason is told where the ranks meet)
            self.outcome = f"{self.path}: {_describe(error)}"
        finally:
            self.seconds = time.monotonic() - began
            self.copied.set()
            self.done.set()

    def _find_spoiled(self) -> str | None:
        for piece, copy in zip(self.state.pieces, self.state.copies, strict=True):
            if not all(math.isfinite(end) for end in torch.aminmax(copy)):  # of a NaN, both are; and no mask is made
                return f"{piece.kind} of {piece.name} is not finite after step {self.manifest.identity.step}"
        return None

    def _copy(self) -> None:
        if self.ready is None:
            self._take_values()
            return
        [device] = self.state.devices  # a new thread's own is GPU 0
        stream = torch.cuda.Stream(device)  # beside the stream that goes on computing
        with torch.cuda.device(device), torch.cuda.stream(stream):
            stream.wait_event(self.ready)
            self._take_values()
            stream.synchronize()

    def _take_values(self) -> None:
        self.state.copy()
        if self.state.replicas:
            self.replicas = digest_sums(sum_bits(self.state.replicas))


def _describe(error: Exception) -> str:
    """The system's words for what it refused (a full disk); type and text of anything else (CUDA, memory)."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return "".join(traceback.format_exception_only(error)).strip()
