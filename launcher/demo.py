"""`lockstep demo`: from nothing to a fine-tuned pipeline on this machine, through the commands a user would type."""

import os
import subprocess
import sys
from pathlib import Path

from configs.reading.load import load_config
from launcher.backend import LocalBackend
from launcher.plan.plan import PlanRequest, make_plan
from launcher.plan.plan_text import render_plan
from launcher.submit.start import start_run
from store.run.end import FINISHED


def run_demo(folder: Path, images: str) -> int:
    """Make the inputs, plan, train, draw before and after; the exit code. Running it again resumes, or draws again.

    `images`: "shapes" or "openmoji".
    """
    folder = folder.absolute()
    exit_code = _run_torch_part("prepare", folder, images)
    if exit_code != FINISHED:
        return exit_code
    file = folder / "demo.yaml"
    config = load_config(file)
    backend = LocalBackend()
    plan = make_plan(config, PlanRequest(str(file)), backend)
    print(f"\n$ lockstep plan {file}\n{render_plan(plan)}\n")
    print(f"$ lockstep submit {file} --local", flush=True)
    exit_code = start_run(config, backend)
    if exit_code != FINISHED:
        return exit_code
    run = plan.run_dir
    print("\ndrawing the same 16 prompts before and after", flush=True)
    exit_code = _run_torch_part("compare", folder, images, run.pipeline_path)
    if exit_code == FINISHED:
        print(f"\npipeline     {run.pipeline_path}\npictures     {run.pictures_path}")
        print(f"curves       lockstep tensorboard {run.path}")
    return exit_code


def _run_torch_part(*arguments: object) -> int:
    """`python -P -m lockstep train.demo …`, and its exit code: the launcher itself imports no torch."""
    quiet = {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    command = [sys.executable, "-P", "-m", "lockstep", "train.demo", *map(str, arguments)]
    return subprocess.run(command, env=os.environ | quiet, check=False).returncode
