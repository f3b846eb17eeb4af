"""The nodes as the supervisor sees them: power, network cable, and slurmd."""

import os
import signal
import subprocess
import sys

import psutil

from configs.errors import LockstepError, UserError
from slurm.lab.daemons import Daemons
from slurm.lab.lab_dir import LabDir
from slurm.lab.namespaces import UNSHARE
from slurm.lab.settings import Settings

_BRIDGE = "cluster"


class Nodes:
    """Plain nodes are slurmds side by side: they can be started, and that is all."""

    def __init__(self, lab: LabDir, settings: Settings, daemons: Daemons):
        self.lab, self.settings, self.daemons = lab, settings, daemons

    def create_network(self) -> None:
        """The controller's side: a bridge, in the supervisor's own network namespace."""
        _ip("link set lo up")
        _ip(f"link add {_BRIDGE} type bridge")
        _ip(f"address add {self.settings.controller_address}/24 dev {_BRIDGE}")
        _ip(f"link set {_BRIDGE} up")

    def start(self, number: int) -> None:
        """Power on, with the cable in."""
        name = self._name(number)
        if self.daemons.pid(name) is not None:
            raise UserError(f"{name} runs already")
        if self.settings.plain:
            (self.lab.spool / name).mkdir(exist_ok=True)
            self.daemons.start(name, ["slurmd", "-D", "-N", name])
            return
        init = [sys.executable, "-P", "-m", "lockstep", "slurm.lab.node", str(self.lab.path), str(number)]
        pid = self.daemons.start(name, [*UNSHARE, *init], wait_for_line=True)
        self.daemons.wait(f"{name}'s network namespace", lambda: _network_of(pid) != _network_of(os.getpid()), [name])
        _ip(f"link add {name} type veth peer name eth0 netns {pid}")
        _ip(f"link set {name} master {_BRIDGE} up")
        self.daemons.release(name)

    def kill(self, number: int) -> None:
        """Power off. The cable goes first, so that no neighbour hears a last word from the dying processes."""
        name = self._name(number)
        if (pid := self._powered(name)) is None:
            raise UserError(f"{name} is off already")
        _ip(f"link delete {name}")
        # `unshare` ends when pid 1 of the node has ended, which the kernel delays until all others in there have.
        init = [child.pid for child in psutil.Process(pid).children()]
        self.daemons.stop(name, signal.SIGKILL, *init)

    def disconnect(self, number: int) -> None:
        self._set_cable(number, "down")

    def reconnect(self, number: int) -> None:
        self._set_cable(number, "up")

    def _set_cable(self, number: int, state: str) -> None:
        name = self._name(number)
        if self._powered(name) is None:
            raise UserError(f"{name} is off; start it with start-node {number}")
        _ip(f"link set {name} {state}")

    def _powered(self, name: str) -> int | None:
        if self.settings.plain:
            raise UserError("this lab is plain: nodes have power and cables of their own only in namespaces, as root")
        return self.daemons.pid(name)

    def _name(self, number: int) -> str:
        if not 1 <= number <= self.settings.nodes:
            raise UserError(f"there is no node {number}; this lab has nodes 1 to {self.settings.nodes}")
        return f"node{number}"


def _network_of(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/ns/net")
    except FileNotFoundError:
        return _network_of(os.getpid())  # it has ended, which is noticed elsewhere


def _ip(words: str) -> None:
    done = subprocess.run(["ip", *words.split()], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise LockstepError(f"ip {words}: {done.stderr.strip()}")
