"""The program of test_failure: rank 1 comes late to a collective, and rank 0 reports what torch says of it.

Arguments: the attempt's folder.
"""

import os
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from store.run.run_dir import Attempt
from train.resilience.failure import report_failure


def main(folder: str) -> None:
    rank = int(os.environ["RANK"])
    dist.init_process_group("gloo", timeout=timedelta(seconds=2))
    store = dist.distributed_c10d._get_default_store()
    if rank == 1:
        store.wait(["reported"], timedelta(minutes=1))
        store.set("seen", "")
        return
    try:
        dist.all_reduce(torch.zeros(1))
    except RuntimeError as error:
        report_failure(Attempt(Path(folder)), rank, error)
    store.set("reported", "")
    store.wait(["seen"], timedelta(minutes=1))  # the store ends with this rank


if __name__ == "__main__":
    main(*sys.argv[1:])
