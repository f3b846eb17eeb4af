"""How long the command takes to answer, against a bare interpreter: `python -m bench.launcher`.

Runs are interleaved, so that a busy machine slows all of them; medians and the median of paired ratios are printed,
and written to bench/results/launcher.json. Aim: ≤ 10 × `python -c pass` and ≤ 0.6 s.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "launcher.json"
CONFIG = """\
name: bench
model: stable-diffusion-v1-5/stable-diffusion-v1-5
data: {images: ./images}
batch: 256
micro_batch: 8
epochs: 20
precision: bf16
ema: true
cluster: {nodes: 2-8, gpus_per_node: 4}
"""


def seconds(command: list[str], folder: str) -> float:
    started = time.perf_counter()
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=11, help="runs of each command")
    runs = parser.parse_args().runs
    lockstep = [str(Path(sys.executable).with_name("lockstep"))]
    commands = {
        "python -c pass": [sys.executable, "-c", "pass"],
        "lockstep --help": [*lockstep, "--help"],
        "lockstep plan": [*lockstep, "plan", "bench.yaml", "--samples", "10000"],
    }
    times: dict[str, list[float]] = {name: [] for name in commands}
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "bench.yaml").write_text(CONFIG)
        for command in commands.values():  # compiles the bytecode, fills the page cache
            seconds(command, folder)
        for _ in range(runs):
            for name, command in commands.items():
                times[name].append(seconds(command, folder))
    bare = times["python -c pass"]
    rows = {
        name: {
            "median_s": round(statistics.median(found), 4),
            "ratio": round(statistics.median(t / b for t, b in zip(found, bare, strict=True)), 2),
        }
        for name, found in times.items()
    }
    print(f"{'':<18}{'median':>9}{'ratio':>8}   ({runs} interleaved runs, {os.cpu_count()} CPUs)")
    for name, row in rows.items():
        print(f"{name:<18}{row['median_s']:>7.3f} s{row['ratio']:>7.1f}×")
    RESULTS.parent.mkdir(exist_ok=True)
    machine = {"python": platform.python_version(), "machine": platform.machine(), "cpus": os.cpu_count()}
    RESULTS.write_text(json.dumps({**machine, "runs": runs, "commands": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
