"""One rank of a real attempt. Arguments: the run's folder and the attempt's number. Prints which graphs were found."""

import json
import os
import sys
from pathlib import Path

from torch._dynamo.utils import counters

import train.attempt
from store.run.run_dir import RunDir
from train.stop_signal import StopSignal


def main(run_dir: str, number: str) -> None:
    run = RunDir(Path(run_dir))
    end = train.attempt.run_attempt(run, run.attempt(int(number)), StopSignal())
    found = {name: counters["inductor"][f"fxgraph_cache_{name}"] for name in ("hit", "miss")}
    print(json.dumps(found), flush=True)
    os._exit(end.exit_code)


if __name__ == "__main__":
    main(*sys.argv[1:])
