"""Regional torch.compile: the blocks that a denoiser repeats are compiled, each where it stands.

Blocks of the same shapes share a graph, so few are compiled however deep the denoiser is; parameters keep their names.
"""

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch._dynamo  # where the one setting lies that torch.compiler has not

from configs.errors import UserError
from configs.schema import RunConfig
from configs.solve.buckets import list_crop_sizes
from configs.solve.engine import choose_engine
from train.data.workers import count_cpus
from train.engines.blocks import find_blocks
from train.private_folder import make_private_folder

BACKEND = "inductor"
# Of one class, for each size of images; after torch's own 8 the others would stay uncompiled in silence, and SD 1.5's
# UNet has 14.
GRAPHS = 64
CLASSES = 4  # of blocks that are compiled; torch counts the graphs of all together as well


def should_compile(config: RunConfig, device: torch.device) -> bool:
    """`compile`; where it is null, on a GPU, but for `deterministic`, which keeps torch's own kernels, and for
    DeepSpeed's ZeRO 3, whose hooks on every layer cut the graphs to pieces."""
    if config.compile is not None:
        return config.compile
    cut_up = choose_engine(config) == "deepspeed" and config.zero == 3
    return device.type == "cuda" and not config.deterministic and not cut_up


def compile_blocks(denoiser: torch.nn.Module, config: RunConfig, device: torch.device) -> bool:
    """Compile the blocks of `denoiser`, at its first pass, where the run should and this node can; whether it will be.

    To be called before an engine takes the denoiser. Raises UserError where `compile: true` cannot be done here.
    """
    if not should_compile(config, device):
        return False
    _prepare_compiler(len(list_crop_sizes(config.data)))
    if problem := _find_problem(device):
        sentence = f"torch.compile does not work on {socket.gethostname()} ({problem})"
        if config.compile:
            raise UserError(f"{sentence}: install a C++ compiler there (and Triton for a GPU), or write compile: false")
        print(f"{sentence}: the UNet's blocks run uncompiled, which is slower", flush=True)
        return False
    for block in find_blocks(denoiser):
        # Each size of the buckets gets graphs of its own: they are as fast as a square's, and which kernels a size gets
        # does not depend on the sizes that came before it, so that a resume goes on with the same bits.
        block.compile(backend=BACKEND, dynamic=False)
    return True


def _prepare_compiler(sizes: int) -> None:
    """What is compiled lies in a folder of this user's alone; other ranks of this node compile beside this one."""
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(make_private_folder() / "compile"))
    if "TORCHINDUCTOR_COMPILE_THREADS" not in os.environ:
        torch._inductor.config.compile_threads = count_cpus()
    torch._dynamo.config.recompile_limit = GRAPHS * sizes
    torch._dynamo.config.accumulated_recompile_limit = CLASSES * GRAPHS * sizes


def _find_problem(device: torch.device) -> str | None:
    """Why nothing can be compiled here, found out by compiling next to nothing."""

    @torch.compile(backend=BACKEND, dynamic=False)
    def double(x: torch.Tensor) -> torch.Tensor:
        return x + x

    with _notices_blocked():
        try:
            double(torch.ones(8, device=device))
        except (RuntimeError, OSError) as error:
            return f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
    return None


@contextmanager
def _notices_blocked() -> Iterator[None]:
    """Processes started in here, such as those that compile, do not die of a notice that is for the rank."""
    notices = {signal.SIGTERM, signal.SIGUSR2, signal.SIGINT}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, notices)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
