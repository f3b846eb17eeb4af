"""One save on one rank, in the background: a consistent copy first, then the file."""

import threading
import time
import traceback
from pathlib import Path

import torch

from store.checkpoint.fragment_file import StoredFragment, write_fragments
from store.checkpoint.manifest import FileEntry, Manifest


class Snapshot:
    """Copies `sources` into `buffers` and writes them to `path`. The sources must not change before `copied` is set.

    `manifest` is that of the checkpoint, without its files. The rest may be read once `done` is set.
    """

    def __init__(
        self,
        manifest: Manifest,
        path: Path,
        pieces: list[StoredFragment],
        sources: list[torch.Tensor],
        buffers: list[torch.Tensor],
    ):
        self.manifest, self.path = manifest, path
        self.pieces, self.sources, self.buffers = pieces, sources, buffers
        self.copied, self.done = threading.Event(), threading.Event()
        self.outcome: FileEntry | str = f"{path}: was not written"  # the file, or what went wrong
        self.spoiled: str | None = None  # the first value that is not finite
        self.seconds = 0.0  # that the copy and the file took
        self.ready = torch.cuda.Event() if sources and sources[0].is_cuda else None
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
                values = [buffer.numpy() for buffer in self.buffers]
                self.outcome = write_fragments(self.path, self.pieces, values, self.manifest.identity)
        except Exception as error:  # noqa: BLE001  (it costs this save, and its reason is told where the ranks meet)
            self.outcome = f"{self.path}: {_describe(error)}"
        finally:
            self.seconds = time.monotonic() - began
            self.copied.set()
            self.done.set()

    def _find_spoiled(self) -> str | None:
        for piece, buffer in zip(self.pieces, self.buffers, strict=True):
            if not torch.isfinite(buffer).all():
                return f"{piece.kind} of {piece.name} is not finite after step {self.manifest.identity.step}"
        return None

    def _copy(self) -> None:
        if self.ready is None:
            for buffer, source in zip(self.buffers, self.sources, strict=True):
                buffer.copy_(source)
            return
        device = self.sources[0].device  # a new thread's own is GPU 0
        stream = torch.cuda.Stream(device)  # beside the stream that goes on computing
        with torch.cuda.device(device), torch.cuda.stream(stream):
            stream.wait_event(self.ready)
            for buffer, source in zip(self.buffers, self.sources, strict=True):
                buffer.copy_(source, non_blocking=True)
            stream.synchronize()


def _describe(error: Exception) -> str:
    """The system's words for what it refused (a full disk); type and text of anything else (CUDA, memory)."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return "".join(traceback.format_exception_only(error)).strip()
