"""`lockstep export`: started as a process of its own, because it needs torch and this package does not."""

import os
import subprocess
import sys

from configs.run_dir import RunDir


def run_export(run: RunDir, step: int | None, weights: str | None, out: str) -> int:
    command = [sys.executable, "-P", "-m", "train.export", str(run.path), "--out", out]
    command += ["--step", str(step)] if step is not None else []
    command += ["--weights", weights] if weights is not None else []
    quiet = {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, env=os.environ | quiet, check=False).returncode
