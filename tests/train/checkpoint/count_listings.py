"""The program of test_saving: one rank of an attempt, which prints how often it lists the run's checkpoints.

Arguments: the run's folder and the attempt's number. A list reads the folder and a record of every attempt, on a file
system that all ranks share.
"""

import os
import sys
from pathlib import Path

from store.checkpoint import checkpoints
from store.run.run_dir import RunDir
from train.attempt import run_attempt
from train.stop_signal import StopSignal


def main(run_dir: str, number: str) -> None:
    run, listings, list_checkpoints = RunDir(Path(run_dir)), [], checkpoints.list_checkpoints

    def watched(run: RunDir) -> list[checkpoints.Checkpoint]:
        listings.append(sys._getframe(1).f_code.co_qualname)
        return list_checkpoints(run)

    checkpoints.list_checkpoints = watched
    run_attempt(run, run.attempt(int(number)), StopSignal())
    print(f"listings of rank {os.environ['RANK']}: {' '.join(listings)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
