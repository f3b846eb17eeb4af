"""How fast samples come, beside datasets' imagefolder under a torch DataLoader: `python -m bench.data`.

About 5 minutes on two idle cores; needs `pip install 'lockstep[bench]'` (datasets; the OpenMoji drawings, CC BY-SA 4.0,
rendered at 512 px, as PNG with a transparent ground and as JPEG on white). Prints the ratios, writes
bench/results/data-DATE.json.

Every side is a process of its own with one thread, and they take turns: a block of micro-batches of one, then of the
next. With --workers 0, as is the default, nothing is decoded outside of its turn. A micro-batch is pixels in [-1, 1],
or cached moments, and tokens; the noise by position that a rank's own stream also draws is timed alone.

samples/s per core  samples through the CPU seconds of a side, median of its blocks
ours/usual          how many times as many samples, of the blocks of one round, median [lower, upper quartile]: in CPU
                    time, and in time by the clock. Aims: uncached 1.2, cached 20 (beside the usual on PNG)
usual/usual         the usual against its own next block: what the machine's noise alone makes of a ratio
open, first sample  seconds, each in a fresh process after its imports: the first time, again, and as a rank opens what
                    submit has looked at. The median of the tries. Aim: 20 times sooner
decode + crop       our function alone, on one thread; noise is what the stream draws for one sample's position
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bench.machine import ROOT, make_environment, summarize, write_result
from bench.peer import make_pipeline_folder
from bench.turns import Player
from configs.schema import DataConfig
from configs.solve.buckets import CropSize
from train.data.images import load_crop
from train.data.randomness import Purpose, draw_normals
from train.demo.openmoji import write_drawings

MODEL = {"unet": (32, 32, 32, 32), "vae": (8, 16, 32, 32), "text": (64, 2), "groups": 8}
AIMS = {"PNG": 1.2, "JPEG": 1.2, "cached": 20.0}
OPENED = {"open": "open", "first sample": "first sample", "rank: open": "open", "rank: first sample": "first sample"}
Blocks = dict[str, list[tuple[float, float]]]  # seconds and CPU seconds of every block of a side


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=1024, help="drawings")
    parser.add_argument("--cached", type=int, default=64, help="drawings that are encoded, on one thread")
    parser.add_argument("--side", type=int, default=512, help="pixels")
    parser.add_argument("--batch", type=int, default=8, help="samples of a micro-batch")
    parser.add_argument("--workers", type=int, default=0, help="processes that decode, of each side")
    parser.add_argument("--rounds", type=int, default=11, help="counted blocks of each side")
    parser.add_argument(
        "--block", type=int, default=16, help="micro-batches of one block; 20 times as many cached ones"
    )
    parser.add_argument("--tries", type=int, default=5, help="openings of each side")
    return parser.parse_args()


def make_folders(folder: Path, args: argparse.Namespace) -> dict[str, Path]:
    """The same drawings as PNG and as JPEG, and some of them to be encoded, each with its metadata.jsonl."""
    folders = {"PNG": folder / "png", "JPEG": folder / "jpeg", "cached": folder / "cached"}
    write_drawings(folders["PNG"], args.side, args.count)
    write_drawings(folders["cached"], args.side, args.cached)
    folders["JPEG"].mkdir()
    for file in folders["PNG"].glob("*.png"):
        with Image.open(file) as drawing:
            shown = Image.new("RGBA", drawing.size, "white")
            shown.alpha_composite(drawing.convert("RGBA"))
        shown.convert("RGB").save(folders["JPEG"] / f"{file.stem}.jpg", quality=90)
    listed = (folders["PNG"] / "metadata.jsonl").read_text()
    (folders["JPEG"] / "metadata.jsonl").write_text(listed.replace('.png"', '.jpg"'))
    return folders


class Sides:
    """What each process is told."""

    def __init__(self, folder: Path, args: argparse.Namespace):
        self.folder, self.args = folder, args
        self.images = make_folders(folder, args)
        self.model = make_pipeline_folder(folder / "model", MODEL, args.side)
        self.environment = make_environment("cpu", 1)

    def options(self, name: str, task: str, images: str, cache: str = "cache") -> dict[str, Any]:
        keys = vars(self.args) | {"task": task, "images": str(self.images[images]), "model": str(self.model)}
        return keys | {
            "encoded": images == "cached",
            "folder": str(self.folder),
            "cache": str(self.folder / name / cache),
        }

    def ask(self, name: str, task: str, images: str, cache: str) -> dict[str, float]:
        """The answer of a fresh process."""
        options = json.dumps(self.options(name, task, images, cache))
        command = [sys.executable, "-m", f"bench.data_{name}", options]
        done = subprocess.run(command, cwd=ROOT, env=self.environment, capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stderr[-8000:])
        return json.loads(done.stdout.splitlines()[-1])

    def player(self, name: str, images: str) -> Player:
        options = self.options(name, "feed", images)
        return Player(f"bench.data_{name}", options, self.environment, self.folder / f"{name}-{images}.log")


def measure_openings(sides: Sides) -> dict[str, dict[str, float]]:
    """Median seconds of each step of an opening, by side and whether it was the first one."""
    found: dict[str, list[dict[str, float]]] = {}
    for attempt in range(sides.args.tries):
        for name in ("usual", "ours"):
            for when in ("first time", "again"):
                found.setdefault(f"{name}, {when}", []).append(sides.ask(name, "open", "PNG", f"opened-{attempt}"))
    return {
        who: {step: round(statistics.median(row[step] for row in rows), 5) for step in rows[0]}
        for who, rows in found.items()
    }


def take_turns(sides: Sides) -> Blocks:
    players = {
        f"{name} {images}": sides.player(name, images) for images in ("PNG", "JPEG") for name in ("usual", "ours")
    }
    players["ours cached"] = sides.player("ours", "cached")
    lengths = {who: sides.args.block * (20 if who == "ours cached" else 1) for who in players}
    for player in players.values():
        player.wait()
    for who, player in players.items():
        player.play(lengths[who])  # warms up
    blocks: Blocks = {who: [] for who in players}
    for _ in range(sides.args.rounds):
        for who, player in players.items():
            seconds, cpu = player.play(lengths[who])
            samples = lengths[who] * sides.args.batch
            blocks[who].append((seconds / samples, cpu / samples))
    for player in players.values():
        player.end()
    return blocks


def compare(blocks: Blocks) -> dict[str, dict[str, float]]:
    """Paired ratios, in CPU time and by the clock: usual's cost of a sample to ours in the same round."""
    pairs = {
        "PNG": ("usual PNG", "ours PNG"),
        "JPEG": ("usual JPEG", "ours JPEG"),
        "cached": ("usual PNG", "ours cached"),
    }
    ratios = {}
    for kind, (usual, ours) in pairs.items():
        for place, clock in ((1, "CPU"), (0, "clock")):
            rows = zip(blocks[usual], blocks[ours], strict=True)
            ratios[f"ours/usual, {kind}, {clock}"] = summarize([row[0][place] / row[1][place] for row in rows])
    again = zip(blocks["usual PNG"], blocks["usual PNG"][1:], strict=False)
    return ratios | {"usual/usual, PNG, CPU": summarize([before[1] / after[1] for before, after in again])}


def time_alone(call: Callable[[Path], Any], files: list[Path]) -> float:
    """Files per second of this thread's CPU time, the best of three runs."""
    found = []
    for _ in range(3):
        began = time.thread_time()
        for file in files:
            call(file)
        found.append(len(files) / (time.thread_time() - began))
    return max(found)


def measure_decoding(sides: Sides) -> dict[str, float]:
    """Images per second and core of decode + crop, ours, and what Pillow takes of it to decode."""
    size = CropSize(sides.args.side, sides.args.side)
    data = DataConfig(images=str(sides.folder), resolution=sides.args.side)

    def crop(file: Path) -> None:
        with open(file, "rb") as opened:
            load_crop(opened, data, size, (0.5, 0.5), flip=False)

    def decode(file: Path) -> None:
        with Image.open(file) as image:
            np.asarray(image)

    def draw(file: Path) -> None:
        for purpose in (Purpose.POSTERIOR, Purpose.NOISE):
            draw_normals(0, purpose, [0], (4, sides.args.side // 8, sides.args.side // 8))

    found = {}
    for images in ("PNG", "JPEG"):
        files = sorted(sides.images[images].glob("*.[pj][np]g"))[:256]
        found[images] = round(time_alone(crop, files), 1)
        found[f"{images}, Pillow alone"] = round(time_alone(decode, files), 1)
    found["noise of a position"] = round(time_alone(draw, files), 1)
    return found


def main() -> None:
    args = arguments()
    began, load = time.perf_counter(), [os.getloadavg()[0]]
    with tempfile.TemporaryDirectory() as folder:
        sides = Sides(Path(folder), args)
        decoding = measure_decoding(sides)
        openings = measure_openings(sides)
        encoding = sides.ask("ours", "encode", "cached", "cache")
        blocks = take_turns(sides)
    load.append(os.getloadavg()[0])
    ratios = compare(blocks)
    speeds = {who: round(1 / statistics.median(cpu for _, cpu in rows), 1) for who, rows in blocks.items()}
    index_rate = round(args.count / openings["ours, first time"]["open"], 1)
    rates = {"index, images/s": index_rate, "cache, images/s": round(encoding["images"] / encoding["seconds"], 2)}
    took = round(time.perf_counter() - began)
    show(decoding, openings, speeds, ratios, rates)
    record = {"took_s": took, "load": load, "options": vars(args), "decode_images_per_s": decoding}
    record |= {"open_s": openings, "samples_per_core_s": speeds, "ratios": ratios, "rates": rates, "encoding": encoding}
    print(f"{took} s, load {load} → {write_result('data', record | {'s_and_cpu_s_per_sample': blocks})}")


def show(
    decoding: dict[str, float],
    openings: dict[str, dict[str, float]],
    speeds: dict[str, float],
    ratios: dict[str, dict[str, float]],
    rates: dict[str, float],
) -> None:
    for name, rate in decoding.items():
        print(f"alone: {name:<31}{rate:>10.1f} images/s per core")
    for name, rate in rates.items():
        print(f"{name:<38}{rate:>10.1f}")
    for who, speed in speeds.items():
        print(f"{who:<38}{speed:>10.1f} samples/s per core")
    for name, row in ratios.items():
        aim = AIMS.get(name.split(", ")[1]) if "ours" in name and name.endswith("CPU") else None
        reached = f"  aim {aim:g}: {'reached' if row['median'] >= aim else 'not reached'}" if aim else ""
        print(f"{name:<38}{row['median']:>10.3f} [{row['low']:.3f}, {row['high']:.3f}]{reached}")
    for who, steps in openings.items():
        for step, seconds in steps.items():
            usual = openings[f"usual, {who.split(', ')[1]}"][OPENED[step]]
            ratio = f"  {usual / seconds:.1f} times as soon" if who.startswith("ours") else ""
            print(f"{who}: {step:<30}{seconds:>10.4f} s{ratio}")


if __name__ == "__main__":
    main()
