"""The program of test_optimizer_resume: make checkpoints of runs with several optimizers, or load them on this world.

Arguments: the root folder, the pipeline folder, the data of the runs' configs as JSON, and cases as JSON: [[optimizer,
engine, precision, [source, …]], …], an engine being a name in tests.engines and a source a run's name. A case without
sources makes a run, and then goes on with it as well, in a new engine.
"""

import json
import os
import sys
from pathlib import Path

from tests.train.checkpoint.elastic import Case
from train import process_group
from train.stop_signal import StopSignal


def main(root: str, pipeline: str, data: str, cases: str) -> None:
    stop = StopSignal()
    world = process_group.init_process_group(int(os.environ["WORLD_SIZE"]))
    for optimizer, engine, precision, sources in json.loads(cases):
        folders = (Path(root, optimizer), Path(pipeline))
        changes = {"data": json.loads(data), "optimizer": {"name": optimizer, "decay": "matrices"}}
        case = Case(world, stop, folders, engine, precision, changes)
        if not sources:
            case.make()
            sources = [case.name]
            case = Case(world, stop, folders, engine, precision, changes)
        for source in sources:
            case.load(source, moments_differ=optimizer == "adamw_8bit" and source != case.name)


if __name__ == "__main__":
    main(*sys.argv[1:])
