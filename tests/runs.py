"""Run folders for tests, made without the launcher: a config, a dataset, and attempts on any shape."""

import secrets
from pathlib import Path

from configs import deepspeed_config
from configs.attempt_plan import AttemptPlan
from configs.batch import Shape, solve
from configs.dataset import digest, list_samples, to_lines
from configs.length import length_of
from configs.load import dump, load
from configs.run_dir import Attempt, RunDir, write_atomic, write_json
from configs.schema import RunConfig


def new_run(folder: Path, model: Path, images: Path, **changes) -> RunDir:
    """A run of 12-sample batches over small images."""
    settings = {
        "name": folder.name,
        "model": str(model),
        "data": {"images": str(images), "resolution": 32, "crop": "random", "flip": True, "workers": 0},
        "batch": 12,
        "steps": 12,
        "lr": 1e-4,
        "ema": True,
        "report_every_steps": 1,
        "runs": str(folder.parent),
    }
    run = RunDir(folder)
    write_atomic(run.config, dump(RunConfig(**(settings | changes))))
    write_atomic(run.dataset, to_lines(list_samples(images).samples))
    return run


def next_attempt(run: RunDir, ranks: int, **changes) -> Attempt:
    """Open the next attempt on `ranks` ranks, with `changes` to the config that a resume may make."""
    config = load(run.config).model_copy(update=changes)
    write_atomic(run.config, dump(config))
    lines = run.dataset.read_text()
    cut = solve(config, Shape(1, ranks))
    attempt = run.open_attempt()
    size = lines.count("\n")
    AttemptPlan(
        nodes=1,
        gpus_per_node=ranks,
        micro_batch=cut.micro_batch,
        gradient_accumulation_steps=cut.accumulation,
        total_steps=length_of(config, cut.batch, size).steps,
        model_folder=config.model,
        nonce=secrets.token_hex(8),
        dataset_size=size,
        dataset_digest=digest(lines),
    ).write(attempt)
    write_json(attempt.deepspeed, deepspeed_config.render(config, cut))
    return attempt
