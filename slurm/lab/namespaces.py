"""A machine of its own without a machine: namespaces, and how to get in."""

import os
import subprocess
import sys
from pathlib import Path

from slurm.lab import enter
from slurm.lab.packages import make_search_path

# The new pid 1 dies with `unshare`, and with pid 1 the kernel kills everything else in there.
UNSHARE = (
    *("unshare", "--net", "--mount", "--pid", "--uts", "--ipc"),
    *("--mount-proc", "--fork", "--kill-child=KILL"),
)


def can_make_namespaces() -> bool:
    """Whether this process may make them, with a bridge and cables inside: containers often may not."""
    if os.geteuid() != 0:
        return False
    everything = (
        "ip link set lo up && ip link add bridge type bridge && ip link add one type veth peer name two && "
        "hostname probe && mount -t tmpfs tmpfs /dev/shm && mount --bind /etc/passwd /etc/hosts"
    )
    probe = [*UNSHARE, "sh", "-c", everything]
    environment = os.environ | {"PATH": make_search_path()}
    return subprocess.run(probe, env=environment, capture_output=True, check=False).returncode == 0


def make_enter_command(pid: int) -> list[str]:
    """The words before a command that runs it where `pid` lives; the interpreter starts bare, to be quick."""
    return [sys.executable, "-I", "-S", str(Path(enter.__file__)), str(pid)]
