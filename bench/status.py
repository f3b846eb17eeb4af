"""How long `lockstep status` takes for 1,000 finished and 50 live runs: `python -m bench.status`. Aim: ≤ 2 s.

SLURM is a script that answers at once, so this is our own part; printed, and written to bench/results/status.json.
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

from tests.launcher.folders import FakeSlurm, many

RESULTS = Path(__file__).parent / "results" / "status.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--finished", type=int, default=1000)
    parser.add_argument("--live", type=int, default=50)
    parser.add_argument("--times", type=int, default=5)
    asked = parser.parse_args()
    command = [str(Path(sys.executable).with_name("lockstep")), "status"]
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        fake = FakeSlurm(Path(folder, "bin"), squeue=many(Path(folder, "runs"), asked.finished, asked.live))
        for _ in range(asked.times):
            started = time.perf_counter()
            environment = os.environ | {"PATH": fake.path}
            subprocess.run(command, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
            seconds.append(time.perf_counter() - started)
        calls = fake.calls()
    row = {"finished": asked.finished, "live": asked.live, "median_s": round(statistics.median(seconds), 3)}
    row |= {"slowest_s": round(max(seconds), 3), "calls": {name: n / asked.times for name, n in calls.items()}}
    print(", ".join(f"{name} {value}" for name, value in row.items()))
    machine = {"python": platform.python_version(), "machine": platform.machine(), "cpus": os.cpu_count()}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({**machine, "times": asked.times, **row}, indent=2) + "\n")


if __name__ == "__main__":
    main()
