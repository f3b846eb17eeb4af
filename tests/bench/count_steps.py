"""The program of test_counters: what one step asks of torch, ours with its average and the bare loop's.

Prints one line per engine, as JSON: its name, our counts, the bare loop's counts.
"""

import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import torch

from bench.contestants import find_opponents
from bench.counters import count_step
from bench.stage import make_model, make_stage
from tests.engines import SETTINGS
from tests.tiny import make_images
from train import process_group
from train.engines.ema import Ema
from train.step import Trainer

WARM = 2
SHAPE = {"unet": "tiny", "side": 8, "precision": "fp32", "micro_batch": 2, "accumulation": 2, "workers": 0}


def main() -> None:
    world = process_group.init_process_group(1)
    folder = Path(tempfile.mkdtemp())
    images = make_images(folder / "images", 4)
    for name in SETTINGS:
        args = SimpleNamespace(**SHAPE, warm=WARM, rounds=1, engine=name)
        stage = make_stage(args, world, make_model(args, torch.device("meta")), images)
        opponents = find_opponents(stage)
        bare = opponents.get("bare", opponents["torch"])
        engine = stage.make_engine()
        trainer = Trainer(stage.model, stage.objective, engine, Ema(stage.config.ema, engine), world.device)
        batches = [stage.stream[range(2)], stage.stream[range(2, 4)]]

        def ours(k: int, trainer: Trainer = trainer, batches: list = batches) -> None:
            trainer.step(k, 1e-5, iter(batches), lambda: None)
            bool(trainer.engine.skipped)

        for k in range(1, WARM + 1):
            ours(k)
            bare(k)
        counts = [asdict(count_step(lambda step=step: step(WARM + 1))) for step in (ours, bare)]
        print(json.dumps([name, *counts]))


if __name__ == "__main__":
    main()
