"""How many CPUs a rank has, and so how many processes decode its images."""

import os

from configs.solve.device_memory import count_default_workers


def count_cpus() -> int:
    """CPUs that this rank and the processes it starts may use: what SLURM gave it, else its share of this machine's."""
    available = len(os.sched_getaffinity(0))
    if "LOCAL_WORLD_SIZE" in os.environ:  # torch's launcher started it, whatever job may surround them all
        return max(1, available // int(os.environ["LOCAL_WORLD_SIZE"]))
    return min(available, int(os.environ.get("SLURM_CPUS_PER_TASK", available)))


def count_workers(workers: int | None) -> int:
    """`data.workers`; where it is null, what the rank's CPUs allow."""
    return count_default_workers(count_cpus()) if workers is None else workers
