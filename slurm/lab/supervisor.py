"""`python -P -m lockstep slurm.lab.supervisor FOLDER FD`: all of a lab descends from it, and ends with it.

In namespaces it is pid 1, so the kernel ends everything with it; plain, it adopts orphans and kills them itself. It
reports on FD whether the lab came up, then does what is asked on the control socket.
"""

import contextlib
import ctypes
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from configs.errors import LockstepError, UserError
from slurm.lab.daemons import Daemons
from slurm.lab.database import start_accounting
from slurm.lab.lab_dir import LabDir
from slurm.lab.nodes import Nodes
from slurm.lab.settings import CONTROLLER, Settings, write_configuration

_ADOPT_ORPHANS = 36  # PR_SET_CHILD_SUBREAPER of prctl
_REAP_SECONDS = 0.2


class Supervisor:
    """Brings the lab up in order, and keeps it."""

    def __init__(self, lab: LabDir, settings: Settings):
        self.lab, self.settings = lab, settings
        self.daemons = Daemons(lab)
        self.nodes = Nodes(lab, settings, self.daemons)
        self.requests: dict[str, Callable[..., None]] = {
            "start-node": self.nodes.start,
            "kill-node": self.nodes.kill,
            "disconnect-node": self.nodes.disconnect,
            "reconnect-node": self.nodes.reconnect,
            "stop-controller": self.stop_controller,
            "start-controller": self.start_controller,
        }

    def start(self) -> None:
        """Everything, until all nodes can take jobs."""
        write_configuration(self.lab, self.settings)
        if not self.settings.plain:
            self._furnish()
        self._start_munged()
        if self.settings.accounting:
            start_accounting(self.daemons, self.lab, self.settings)
        self.start_controller()
        for number in range(1, self.settings.nodes + 1):
            self.nodes.start(number)
        self.daemons.wait("all nodes idle", self._all_idle, [*self.settings.node_names(), "slurmctld"])

    def _furnish(self) -> None:
        """A host name, names for the nodes, and shared memory of its own; nodes inherit the first two's files."""
        commands = [["hostname", CONTROLLER], ["mount", "-t", "tmpfs", "-o", "mode=1777", "tmpfs", "/dev/shm"]]
        for name in ("hosts", "resolv.conf"):
            if Path("/etc", name).exists():
                commands.append(["mount", "--bind", str(self.lab.etc / name), f"/etc/{name}"])
        for command in commands:
            subprocess.run(command, check=True)
        self.nodes.create_network()

    def _start_munged(self) -> None:
        run, log = self.lab.run, self.lab.log("munged")
        command = ["munged", "--foreground", "--force", f"--socket={self.lab.munge_socket}"]
        command += [f"--key-file={self.lab.munge_key}", f"--pid-file={run}/munged.pid", f"--log-file={log}"]
        self.daemons.start("munged", [*command, f"--seed-file={run}/munged.seed", "--num-threads=2"])
        self.daemons.wait("munged", self.lab.munge_socket.exists, ["munged"])

    def start_controller(self) -> None:
        if self.daemons.pid("slurmctld") is not None:
            raise UserError("slurmctld runs already")
        self.daemons.start("slurmctld", ["slurmctld", "-D"])
        self.daemons.wait("slurmctld", lambda: "is UP" in self.daemons.call("scontrol", "ping"), ["slurmctld"])

    def stop_controller(self) -> None:
        """As an administrator stops it: it saves its state."""
        self.daemons.stop("slurmctld", signal.SIGTERM)

    def _all_idle(self) -> bool:
        return (
            self.daemons.call("sinfo", "-h", "-N", "-p", "main", "-o", "%T").split() == ["idle"] * self.settings.nodes
        )

    def serve(self, listener: socket.socket) -> None:
        """Answer one request at a time, for ever."""
        while True:
            ready, _, _ = select.select([listener], [], [], _REAP_SECONDS)
            self.daemons.reap()
            if ready:
                connection, _ = listener.accept()
                with connection, contextlib.suppress(OSError):
                    connection.settimeout(5)
                    if line := connection.makefile().readline():  # who only asks for our pid sends nothing
                        connection.sendall(json.dumps(self._answer(json.loads(line))).encode())

    def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        if request["do"] == "dead":
            return {"dead": self.daemons.list_dead()}
        try:
            self.requests[request["do"]](*request["with"])
        except LockstepError as error:
            return {"error": str(error), "exit_code": error.exit_code}
        return {}


def main(folder: Path, report: int) -> int:
    lab = LabDir(folder)
    os.umask(0o022)
    ctypes.CDLL(None).prctl(_ADOPT_ORPHANS, 1)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(lab.control))
            listener.listen()
            supervisor = Supervisor(lab, Settings.read(lab.settings))
            try:
                supervisor.start()
            except LockstepError as error:
                os.write(report, str(error).encode())
                return 1
            os.write(report, b"up")
            os.close(report)
            supervisor.serve(listener)
    finally:
        _kill_descendants()
    return 0


def _kill_descendants() -> None:
    while children := psutil.Process().children(recursive=True):
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        time.sleep(0.01)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
