"""`python -P -m lockstep slurm.job.doctor_job FOLDER`, in `lockstep doctor`'s job: go through what a run lives on.

The first start waits for the notice before the time limit and notes it down; the job's script then requeues the job,
and the second start notes down that it came back. What SLURM gave the rank is in `start-0.json` and `start-1.json`.
"""

import os
import signal
import socket
import sys
import time
from pathlib import Path

from store.run.gpus import count_gpus
from store.run.run_dir import write_json

MINUTES, LEAD = 2, 60  # the job's time limit, and seconds before it at which the notice is asked for
SIGNAL, WORD = "signal.json", "word"
_NOTICES = (signal.SIGTERM, signal.SIGUSR2)


def start_file(restart: int) -> str:
    return f"start-{restart}.json"


def main(folder: Path) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, _NOTICES)
    restart = int(os.environ.get("SLURM_RESTART_COUNT", 0))
    write_json(folder / start_file(restart), _describe_start(folder))
    if restart == 0:
        notice = signal.sigwait(_NOTICES)  # without one the time limit ends this process
        write_json(folder / SIGNAL, {"signal": signal.Signals(notice).name, "time": time.time()})


def _describe_start(folder: Path) -> dict[str, object]:
    """What this rank was given, and what it reads of a file that the login node wrote."""
    return {
        "time": time.time(),
        "host": socket.gethostname(),
        "cpus": len(os.sched_getaffinity(0)),
        "gpus": [gpu for gpu in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu],
        "driver": count_gpus(),
        "word": (folder / WORD).read_text() if (folder / WORD).is_file() else None,
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]))
