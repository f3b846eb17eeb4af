"""Our side of bench/peer.py: a whole attempt, whose trainer waits for its turn. Argument: options as JSON."""

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import torch

import train.attempt
from bench.turns import Turns
from configs.reading.load import dump_config
from configs.schema import RunConfig
from configs.solve.batch import Shape, solve_batch
from configs.solve.hardware import Hardware
from store.dataset.build import build_index
from store.dataset.index import write_index
from store.dataset.sources.image_folder import ImageFolder
from store.files import write_atomic
from store.run.run_dir import Attempt, RunDir
from store.run.submission import Submission, open_attempt
from train.step import StepResult, Trainer
from train.stop_signal import StopSignal


class TakingTurns(Trainer):
    """The trainer of an attempt, which begins a step when it is its turn."""

    turns: Turns

    def step(self, *args: Any, **kwargs: Any) -> StepResult:
        self.turns.before_step()
        return super().step(*args, **kwargs)


def find_hardware(device: str) -> Hardware:
    """This machine, as `submit` finds it."""
    if device == "cpu":
        return Hardware(gpus=False, host_memory=psutil.virtual_memory().total / 2**30)
    card = torch.cuda.get_device_properties(0)
    return Hardware(True, card.total_memory / 2**30, f"{card.major}.{card.minor}")


def open_run(args: SimpleNamespace) -> tuple[RunDir, Attempt]:
    """A run as `lockstep submit` makes it, with the defaults but for the cache, of more steps than are measured."""
    run = RunDir(Path(args.folder, "run"))
    config = RunConfig(
        name="peer",
        model=args.model,
        data={
            "images": args.images,
            "resolution": args.resolution,
            "flip": True,
            "workers": args.workers,
            "cache": args.cache,
        },
        batch=args.batch,
        micro_batch=args.batch,
        steps=args.steps + 2,
        ema=True,
        precision=args.precision,
        checkpoint={"every_steps": None},
        **args.settings,
    )
    index = build_index([ImageFolder(Path(args.images))], None).index
    write_atomic(run.config_path, dump_config(config))
    write_index(run.dataset_path, index, index.roots)
    hardware = find_hardware(args.device)
    Submission(args.model, len(index), index.digest, "", hardware, source_sizes=index.source_sizes).write(
        run.submission_path
    )
    return run, open_attempt(run, config, solve_batch(config, Shape(1, 1)))


def main(options: str) -> None:
    args = SimpleNamespace(**json.loads(options))
    TakingTurns.turns = Turns()
    train.attempt.Trainer = TakingTurns
    run, attempt = open_run(args)
    os.environ.setdefault("LOCAL_RANK", "0")
    train.attempt.run_attempt(run, attempt, StopSignal())


if __name__ == "__main__":
    main(sys.argv[1])
