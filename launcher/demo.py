"""`lockstep demo`: from nothing to a fine-tuned pipeline on this machine, through the commands a user would type."""

import os
import subprocess
import sys
from pathlib import Path

from configs.reading.load import load_config
from launcher.backend import LocalBackend
from launcher.plan import plan_text
from launcher.plan.plan import PlanRequest, make_plan
from launcher.submit.start import submit_run
from store.run.end import FINISHED
from store.run.run_dir import RunDir


def run_demo(folder: Path) -> int:
    """Make the inputs, plan, train, draw before and after. Running it again goes on, or draws again."""
    folder = folder.absolute()
    if (code := _torch_part("prepare", folder)) != FINISHED:
        return code
    file = folder / "demo.yaml"
    config = load_config(file)
    print(f"\n$ lockstep plan {file}\n{plan_text.render_plan(make_plan(config, PlanRequest(str(file))))}\n")
    print(f"$ lockstep submit {file} --local", flush=True)
    if (code := submit_run(config, LocalBackend())) != FINISHED:
        return code
    run = RunDir.for_config(config)
    print("\ndrawing the same 16 prompts before and after", flush=True)
    if (code := _torch_part("compare", folder, run.pipeline)) != FINISHED:
        return code
    print(f"\npipeline     {run.pipeline}\npictures     {run.pictures}\ncurves       lockstep tensorboard {run.path}")
    return FINISHED


def _torch_part(*arguments: object) -> int:
    """`python -P -m lockstep train.demo …`: the launcher itself imports no torch."""
    quiet = {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    command = [sys.executable, "-P", "-m", "lockstep", "train.demo", *map(str, arguments)]
    return subprocess.run(command, env=os.environ | quiet, check=False).returncode
