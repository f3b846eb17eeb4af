"""`lockstep demo`: from nothing to a fine-tuned pipeline on this machine, through the commands a user would type."""

from pathlib import Path

from configs.reading.load import load_config
from launcher.backend import LocalBackend
from launcher.plan.plan import make_plan
from launcher.plan.plan_text import render_plan
from launcher.plan.request import PlanRequest
from launcher.submit.start import start_run
from launcher.torch_part import run_torch_part
from store.run.end import FINISHED


def run_demo(folder: Path, images: str) -> int:
    """Make the inputs, plan, train, draw before and after; the exit code. Running it again resumes, or draws again.

    `images`: "shapes" or "openmoji".
    """
    folder = folder.absolute()
    exit_code = run_torch_part("train.demo", "prepare", folder, images)
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
    exit_code = run_torch_part("train.demo", "compare", folder, images, run.pipeline_path)
    if exit_code == FINISHED:
        print(f"\npipeline     {run.pipeline_path}\npictures     {run.pictures_path}")
        print(f"curves       lockstep tensorboard {run.path}")
    return exit_code
