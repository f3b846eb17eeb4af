"""What torch.compile made, kept in the run directory: the next attempt does not compile again, wherever it runs.

One file for each GPU of the first node, which holds all graphs and kernels: torch's own cache, thousands of small files
written by every rank, is nothing for a shared file system and stays on the node.
"""

import hashlib
import platform
import sys
from pathlib import Path

import torch

from store.files import PRIVATE, own_folder, write_atomic
from train.context import RankContext
from train.step_totals import StepTotals

_DIGEST = hashlib.sha256().digest_size  # bytes in front of the content, for a file that a disk has damaged


class CompileCache:
    """Read before `first_step`, the first of this attempt; written after it, when everything has been compiled.

    Raises UserError where the folder is another user's: it holds code, which would be theirs to choose.
    """

    def __init__(self, context: RankContext, first_step: int):
        self.first_step = first_step
        world, folder = context.world, context.run.compile_path
        own_folder(folder, PRIVATE, "remove it, or write compile: false")
        device = str(world.device).replace(":", "-")  # graphs of one GPU are not found by another
        self.path = folder / f"{digest_machine(world.device)}-{device}.bin"
        self.writes = world.rank == (world.device.index or 0)  # the ranks of the first node, on CPUs rank 0 alone
        self.known = self._read()

    def due(self, step: int) -> bool:
        return step == self.first_step

    def report(self, step: int, totals: StepTotals) -> None:
        """Write the file anew where this attempt compiled something that is not in it."""
        artifacts = torch.compiler.save_cache_artifacts() if self.writes else None
        if artifacts is None:
            return
        content, info = artifacts
        if set(info.inductor_artifacts) <= self.known:
            return
        try:
            write_atomic(self.path, hashlib.sha256(content).digest() + content)
        except OSError as error:
            print(f"{self.path}: cannot be written ({error.strerror}); the next attempt compiles again", flush=True)

    def _read(self) -> set[str]:
        """The names of the graphs that need not be compiled again."""
        if not self.path.exists():
            return set()
        content = self.path.read_bytes()
        digest, content = content[:_DIGEST], content[_DIGEST:]
        if hashlib.sha256(content).digest() != digest:
            print(f"{self.path}: is damaged; this attempt compiles again", flush=True)
            return set()
        info = torch.compiler.load_cache_artifacts(content)
        return set(info.inductor_artifacts) if info is not None else set()


def digest_machine(device: torch.device) -> str:
    """The same for machines and installations that can run each other's compiled code: torch looks at the GPU, and not
    at what its C++ compiler made for the CPU that it saw."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    features = sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))})
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    versions = [torch.__version__, platform.python_version(), sys.prefix]
    return hashlib.sha256("\n".join([*versions, gpu, *features]).encode()).hexdigest()[:16]
