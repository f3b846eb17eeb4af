"""The program of test_pillow_corpus: decode every file of a folder, each in a process of its own, as a rank does.

Argument: the folder. Prints a JSON object: file → what came of it (decoded; refused, and why; or how the process
ended), its peak of memory above that of the process before, in MiB, and whether its header told its size.
"""

import json
import multiprocessing
import re
import sys
from multiprocessing.connection import Connection
from pathlib import Path

from PIL import Image

from configs.schema import DataConfig
from configs.solve.buckets import CropSize
from store.dataset.headers import open_header, read_upright_size
from train.data.images import load_crop

SECONDS = 60  # after which a file hangs
DATA = DataConfig(images="-", resolution=128)


def measure_peak() -> float:
    """Most memory that this process has held, in MiB."""
    found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    return int(found[1]) / 1024


def decode(path: Path, answer: Connection) -> None:
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before, told = measure_peak(), True
    try:
        with open(path, "rb") as file, open_header(file) as image:
            width, height = read_upright_size(image)
        with open(path, "rb") as file:
            pixels, crop = load_crop(file, DATA, CropSize(128, 128), (0.5, 0.5), False)
        assert pixels.shape == (3, 128, 128)
        told = (height, width) == crop.original
        happened = "decoded"
    except Exception as error:  # noqa: BLE001  (as the stream does)
        happened = f"refused: {type(error).__name__}: {error}"
    answer.send((happened, measure_peak() - before, told))


def try_out(path: Path) -> tuple[str, float, bool]:
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=decode, args=(path, there))
    process.start()
    there.close()
    happened, peak, told = "hangs", 0.0, True
    if here.poll(SECONDS):
        try:
            happened, peak, told = here.recv()
        except EOFError:
            process.join()
            happened = f"ended with {process.exitcode}"
    process.kill()
    process.join()
    return happened, peak, told


def main(folder: str) -> None:
    Image.init()  # all of Pillow's formats, before the first process is forked
    root = Path(folder)
    print(json.dumps({str(path.relative_to(root)): try_out(path) for path in root.rglob("*") if path.is_file()}))


if __name__ == "__main__":
    main(sys.argv[1])
