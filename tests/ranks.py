"""Real ranks for tests: a program started N times by torch's launcher, over gloo."""

import os
import subprocess
import sys
from pathlib import Path


def run_ranks(count: int, program: Path, *arguments: object, timeout: int = 400) -> str:
    """Run `program` on `count` ranks, one thread each. Returns what they printed; fails the test where one fails."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    command += [str(program), *map(str, arguments)]
    root = str(Path(__file__).parents[1])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PYTHONPATH": root}
    done = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=timeout
    )
    assert done.returncode == 0, done.stdout[-6000:]
    return done.stdout
