"""`python -P -m lockstep slurm.job.rank_entry RUN_DIR`, in every task of the job: become one rank of the attempt."""

import json
import os
import random
import signal
import socket
import sys
import time
from contextlib import suppress

import psutil

from configs.errors import LockstepError
from store.run.run_dir import Attempt, RunDir, write_json

PORTS = range(15_000, 30_000)  # below Linux's ephemeral ports, where a probe's answer would soon be out of date
PATIENCE = 300  # seconds until rank 0 has said where to meet


def run_rank(run_dir: str) -> None:
    """Replace this process by the rank. SLURM's variables say which one it is."""
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGUSR2))  # they wait until the rank listens
    attempt = RunDir.open(run_dir).attempt(int(os.environ["LOCKSTEP_ATTEMPT"]))
    rank, interface = int(os.environ["SLURM_PROCID"]), os.environ.get("LOCKSTEP_INTERFACE")
    meeting = _announce(attempt, interface) if rank == 0 else _wait_for(attempt)
    environment = {
        "RANK": str(rank),
        "LOCAL_RANK": os.environ["SLURM_LOCALID"],
        "WORLD_SIZE": os.environ["SLURM_NTASKS"],
        "PYTHONSAFEPATH": "1",
    }
    if interface:
        environment |= {"GLOO_SOCKET_IFNAME": interface, "NCCL_SOCKET_IFNAME": interface}
    command = [sys.executable, "-P", "-m", "lockstep", "train", run_dir, f"--attempt={attempt.number}"]
    os.execve(sys.executable, command, os.environ | environment | meeting)


def _announce(attempt: Attempt, interface: str | None) -> dict[str, str]:
    """Rank 0: find a free port on its own node, and say so in the attempt's folder."""
    meeting = {"MASTER_ADDR": _address(interface), "MASTER_PORT": str(_free_port())}
    write_json(attempt.rendezvous_path, meeting)
    return meeting


def _wait_for(attempt: Attempt) -> dict[str, str]:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        with suppress(FileNotFoundError):
            os.listdir(attempt.path)  # makes an NFS client look again
            meeting: dict[str, str] = json.loads(attempt.rendezvous_path.read_text())
            return meeting
        time.sleep(0.1)
    raise LockstepError(f"{attempt.rendezvous_path}: rank 0 has not said where to meet after {PATIENCE} s")


def _address(interface: str | None) -> str:
    if interface is None:
        return os.environ.get("SLURMD_NODENAME", socket.gethostname())
    for address in psutil.net_if_addrs().get(interface, ()):
        if address.family == socket.AF_INET:
            return str(address.address)
    raise LockstepError(f"the site's interface {interface} has no IPv4 address on {socket.gethostname()}")


def _free_port() -> int:
    for port in random.sample(PORTS, 100):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("", port))
            return port
    raise LockstepError(f"no free port between {PORTS.start} and {PORTS.stop} on {socket.gethostname()}")


if __name__ == "__main__":
    try:
        run_rank(sys.argv[1])
    except LockstepError as error:
        sys.exit(f"lockstep: {error}")
