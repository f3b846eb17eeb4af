"""The program of test_compile: the same steps on every engine, eager and compiled, and what was compiled in each.

Arguments: the root folder, the pipeline folder, the image folder and cases as JSON: [{changes of the config}, …].
Prints, per case and on rank 0, the losses and the number of graphs after each step.
"""

import json
import sys
from pathlib import Path

import torch
from torch._dynamo.utils import counters

from configs.reading.load import load_config
from configs.solve.engine import choose_engine
from store.dataset.index import Index
from store.run.attempt_plan import AttemptPlan
from tests.runs import new_run, next_attempt
from train import process_group
from train.data.stream import Stream, micro_batches
from train.engines import import_engine
from train.models import compile, load_model
from train.objective import make_objective
from train.step import Trainer

STEPS = range(1, 3)
COMMON = {"batch": 8, "micro_batch": 2, "steps": len(STEPS), "ema": None}


def train(world, folder: Path, pipeline: Path, images: Path, changes: dict) -> dict:
    torch._dynamo.reset()
    counters.clear()
    if world.is_main_process:
        run = new_run(folder, pipeline, images, **COMMON | changes)
        attempt = next_attempt(run, world.size)
    run, attempt = world.broadcast((run, attempt) if world.is_main_process else None)
    plan = AttemptPlan.read(attempt.plan_path)
    config = plan.settle_config(load_config(run.config_path))
    model = load_model(config, pipeline, world.device)
    objective = make_objective(config, model.noise_scheduler, model.dtype, world.device)
    index = Index.open_file(run.dataset_path)
    stream = Stream(config, index, model, objective.timestep)
    names = [name for name, _ in model.denoiser.named_parameters()]
    assert compile.compile_blocks(model.denoiser, config, world.device) is bool(config.compile)
    assert [name for name, _ in model.denoiser.named_parameters()] == names
    engine = import_engine(choose_engine(config)).for_attempt(model.denoiser, model.weights, config, attempt, world)
    trainer = Trainer(model, objective, engine, None, world.device)
    drawn = list(micro_batches(stream, plan.batch_plan, world.rank, STEPS, pin_memory=False))
    batches = iter(drawn)
    losses, graphs = [], []
    for step in STEPS:
        losses.append(trainer.step(step, 1e-4, batches, lambda: None).loss.item())
        graphs.append(counters["stats"]["unique_graphs"])
    sizes = [str(tuple(micro_batch["pixels"].shape[2:])) for micro_batch in drawn]
    return {"losses": losses, "sizes": sizes, "graphs": graphs, "breaks": sum(counters["graph_break"].values())}


def main(root: str, pipeline: str, images: str, cases: str) -> None:
    compile.BACKEND = "aot_eager"  # torch's graphs without inductor's kernels, which take minutes of a compiler
    cases = json.loads(cases)
    world = process_group.init_process_group(2)
    for number, changes in enumerate(cases):
        for compiled in (False, True):
            name = f"{number}-{'compiled' if compiled else 'eager'}"
            found = train(world, Path(root, name), Path(pipeline), Path(images), changes | {"compile": compiled})
            if world.is_main_process:
                Path(root, f"{name}.json").write_text(json.dumps(found))
    world.barrier()


if __name__ == "__main__":
    main(*sys.argv[1:])
