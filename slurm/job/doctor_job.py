"""`python -P -m lockstep slurm.job.doctor_job FOLDER`, in `lockstep doctor`'s job: go through what a run lives on.

The first start waits for the notice before the time limit and notes it down; the job's script then requeues the job,
and the second start notes down that it came back. What SLURM gave each rank is in `start-RESTART-RANK.json`.
"""

import os
import signal
import socket
import sys
import time
from pathlib import Path

from store.files import write_json
from store.run.gpus import count_gpus
from store.run.nvidia_smi import find_smallest, query_gpus

MINUTES, LEAD = 2, 60  # the job's time limit, and seconds before it at which the notice is asked for
SIGNAL, WORD = "signal.json", "word"
_NOTICES = (signal.SIGTERM, signal.SIGUSR2)


def start_file(restart: int, rank: int = 0) -> str:
    return f"start-{restart}-{rank}.json"


def main(folder: Path) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, _NOTICES)
    restart, rank = int(os.environ.get("SLURM_RESTART_COUNT", 0)), int(os.environ.get("SLURM_PROCID", 0))
    if restart == 0 or rank == 0:  # the folder may go once the first rank is back
        write_json(folder / start_file(restart, rank), _describe_start(folder))
    if restart == 0:
        notice = signal.sigwait(_NOTICES)  # without one the time limit ends this process
        if rank == 0:
            write_json(folder / SIGNAL, {"signal": signal.Signals(notice).name, "time": time.time()})


def _describe_start(folder: Path) -> dict[str, object]:
    """What this rank was given, what it reads of a file that the login node wrote, and what NVIDIA's tool, where it is,
    tells of the GPUs."""
    gpus = query_gpus()
    memory, capability = find_smallest(gpus)
    return {
        "time": time.time(),
        "host": socket.gethostname(),
        "cpus": len(os.sched_getaffinity(0)),
        "gpus": _list_visible_gpus(len(gpus)),
        "driver": count_gpus(),
        "driver_version": gpus[0].driver if gpus else None,
        "gpu_memory": memory,
        "compute_capability": capability,
        "word": (folder / WORD).read_text() if (folder / WORD).is_file() else None,
    }


def _list_visible_gpus(on_node: int) -> list[str] | None:
    """The GPUs that CUDA would show this rank. Without a list of SLURM's, which --gpu-bind=none with several ranks
    leaves out (seen on 22.05), these are all that the tool lists; None where there is no tool, either."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [gpu for gpu in visible.split(",") if gpu]
    return [str(number) for number in range(on_node)] if on_node else None


if __name__ == "__main__":
    main(Path(sys.argv[1]))
