"""The program of test_loading: load a UNet and say by how much memory peaked above what stays.

Arguments: the folder of the UNet, a key of SETTINGS and the precision. Prints, as JSON, the elements and, in bytes,
what the process's own memory was before, at its peak and after.
"""

import ctypes
import gc
import json
import os
import sys
import threading
from pathlib import Path

import torch

from configs.schema import RunConfig
from configs.solve.batch import Shape, solve_batch
from tests.engines import SETTINGS, build_engine
from train import process_group
from train.models.stable_diffusion import StableDiffusion
from train.models.weights import PartWeights


def own_memory() -> int:
    """Bytes of this process's pages that are of no file; what a library's allocator keeps for later counts."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("RssAnon:")[1].split()[0])


class Peak:
    """The largest `own_memory` while it is entered."""

    def __enter__(self) -> "Peak":
        self.bytes, self.over = own_memory(), threading.Event()
        self.thread = threading.Thread(target=self.watch)
        self.thread.start()
        return self

    def watch(self) -> None:
        while not self.over.wait(0.001):
            self.bytes = max(self.bytes, own_memory())

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.thread.join()


def main(folder: str, engine_name: str, precision: str) -> None:
    world = process_group.init_process_group(int(os.environ["WORLD_SIZE"]))
    config = RunConfig(name="a", model="-", data={"images": "-"}, batch=4, precision=precision, **SETTINGS[engine_name])
    batch_plan = solve_batch(config, Shape(1, world.size))
    before = own_memory()
    with Peak() as peak:
        unet = StableDiffusion.make_denoiser(Path(folder))
        weights = PartWeights(Path(folder, "unet"), unet)
        engine = build_engine(unet, weights, config, batch_plan, world)
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    first = engine.owned[0]
    assert torch.equal(engine.weights(first), weights.read(first.name, first.offset, first.length))
    elements = sum(engine.sizes.values())
    print(json.dumps({"elements": elements, "before": before, "peak": peak.bytes, "after": own_memory()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
