"""`lockstep export`: started as a process of its own, because it needs torch and this package does not."""

import os
import subprocess
import sys
from pathlib import Path

from configs.errors import LockstepError, UserError
from configs.run_dir import RunDir
from configs.schema import RunConfig


def run_export(run: RunDir, step: int | None, weights: str | None, out: str) -> int:
    command = [sys.executable, "-P", "-m", "train.export", str(run.path), "--out", out]
    command += ["--step", str(step)] if step is not None else []
    command += ["--weights", weights] if weights is not None else []
    quiet = {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, env=os.environ | quiet, check=False).returncode


def forked(config: RunConfig, parent: str) -> RunConfig:
    """`config` with the newest weights of the run `parent` for its base model, kept in the new run's own folder."""
    run, base = RunDir(Path(config.runs, config.name)), Path(config.runs, config.name, "base")
    if run.path == RunDir.at(parent).path:
        raise UserError(f"{parent}: is this run itself; a fork is a new run, so give it another name")
    if not base.is_dir() and run_export(RunDir.at(parent), None, "raw", str(base)):
        raise LockstepError(f"{parent}: its weights could not be exported, so there is nothing to fork from")
    return config.model_copy(update={"model": str(base)})
