"""`python -P -m lockstep slurm.job.rank_entry RUN_DIR`, in every task of the job: become one rank of the attempt."""

import os
import random
import signal
import socket
import sys
import time
from contextlib import suppress
from dataclasses import dataclass

import psutil

from configs.errors import LockstepError
from store.run.records import Allocation, Record
from store.run.run_dir import Attempt, RunDir

PORTS = range(15_000, 30_000)  # below Linux's ephemeral ports, where a probe's answer would soon be out of date
PATIENCE = 300  # seconds until rank 0 has said where to meet


@dataclass(frozen=True)
class Rendezvous(Record):
    """Where the ranks of an attempt meet: on rank 0's node."""

    address: str
    port: int


def run_rank(run_dir: str) -> None:
    """Replace this process by the rank. SLURM's variables say which one it is."""
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGUSR2))  # they wait until the rank listens
    attempt = RunDir.open(run_dir).attempt(int(os.environ["LOCKSTEP_ATTEMPT"]))
    rank, interface = int(os.environ["SLURM_PROCID"]), os.environ.get("LOCKSTEP_INTERFACE")
    rendezvous = _announce(attempt, interface) if rank == 0 else _wait_for(attempt)
    environment = {
        "RANK": str(rank),
        "LOCAL_RANK": os.environ["SLURM_LOCALID"],
        "WORLD_SIZE": os.environ["SLURM_NTASKS"],
        "MASTER_ADDR": rendezvous.address,
        "MASTER_PORT": str(rendezvous.port),
        "PYTHONSAFEPATH": "1",
    }
    if interface:
        environment |= {"GLOO_SOCKET_IFNAME": interface, "NCCL_SOCKET_IFNAME": interface}
    elif routed := _find_routed_interface(attempt):
        environment["GLOO_SOCKET_IFNAME"] = routed
    command = [sys.executable, "-P", "-m", "lockstep", "train", run_dir, f"--attempt={attempt.number}"]
    os.execve(sys.executable, command, os.environ | environment)


def _announce(attempt: Attempt, interface: str | None) -> Rendezvous:
    """Rank 0: find a free port on its own node, and say so in the attempt's folder."""
    rendezvous = Rendezvous(_address(interface), _free_port())
    rendezvous.write(attempt.rendezvous_path)
    return rendezvous


def _wait_for(attempt: Attempt) -> Rendezvous:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        with suppress(FileNotFoundError):
            os.listdir(attempt.path)  # makes an NFS client look again
        rendezvous = Rendezvous.read_if_written(attempt.rendezvous_path)
        if rendezvous is not None:
            return rendezvous
        time.sleep(0.1)
    raise LockstepError(f"{attempt.rendezvous_path}: rank 0 has not said where to meet after {PATIENCE} s")


def _address(interface: str | None) -> str:
    if interface is None:
        return os.environ.get("SLURMD_NODENAME", socket.gethostname())
    for address in psutil.net_if_addrs().get(interface, ()):
        if address.family == socket.AF_INET:
            return str(address.address)
    raise LockstepError(f"the site's interface {interface} has no IPv4 address on {socket.gethostname()}")


def _find_routed_interface(attempt: Attempt) -> str | None:
    """The interface through which this node reaches another one of the attempt. gloo takes the one to which the node's
    own name leads, and on images whose /etc/hosts has it as 127.0.1.1 nobody else gets there. None where that is not
    so, where there is one node, and where the other node's name leads nowhere: gloo then says what it cannot do."""
    own = os.environ.get("SLURMD_NODENAME", socket.gethostname())
    allocation = Allocation.read_if_written(attempt.allocation_path)
    others = [node for node in allocation.nodes if node != own] if allocation else []
    if not others or not _leads_to_itself(socket.gethostname()):
        return None
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((others[0], PORTS.start))  # sends nothing, and chooses the route
        except OSError:
            return None
        local = probe.getsockname()[0]
    for name, addresses in psutil.net_if_addrs().items():
        if any(address.address == local for address in addresses):
            return str(name)
    return None


def _leads_to_itself(host: str) -> bool:
    """Whether `host` is an address that no other machine can reach, or none at all."""
    try:
        return socket.gethostbyname(host).startswith("127.")
    except OSError:
        return True


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
