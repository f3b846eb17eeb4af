"""`Lab(folder)`: the lab as tests and the command line see it, from outside."""

import contextlib
import fcntl
import json
import os
import select
import shutil
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil

from configs.errors import LockstepError, UserError
from slurm.lab import namespaces, packages
from slurm.lab.lab_dir import LabDir
from slurm.lab.settings import Settings

_UP_SECONDS = 180
_ANSWER_SECONDS = 90


def find_lab_folder() -> Path:
    return Path(os.environ.get("LOCKSTEP_LAB") or Path.home() / ".cache/lockstep/lab")


class Lab:
    """One lab per folder. Nothing here is remembered: whoever listens on the folder's control socket is the lab."""

    def __init__(self, folder: Path | str | None = None):
        self.dir = LabDir(Path(folder or find_lab_folder()).absolute())

    def bring_up(
        self, nodes: int = 4, *, accounting: bool = True, plain: bool = False, port: int = 16800, extra: str = ""
    ) -> bool:
        """Start it with fresh state, unless it is up like this already: False then.

        Plain where namespaces cannot be made. `extra` are more lines for slurm.conf. A lab that is up otherwise, or
        of which a part is dead, is taken down first.
        """
        if not 1 <= nodes <= 99:
            raise UserError(f"a lab has 1 to 99 nodes, not {nodes}")
        self.dir.check_path()
        packages.ensure_packages(accounting)
        settings = Settings(nodes, accounting, plain or not namespaces.can_make_namespaces(), port, extra)
        with self._locked():
            if self._supervisor() is not None and self.settings == settings and self.is_ready():
                return False
            self._end()
            for path in self.dir.made_anew():
                shutil.rmtree(path, ignore_errors=True)
                path.mkdir()
            self.dir.settings.write_text(settings.to_text())
            self._start(plain=settings.plain)
        return True

    def take_down(self) -> bool:
        """End it with all its processes; logs stay. False where there was nothing to end."""
        if not self.dir.settings.exists():
            return False
        with self._locked():
            return self._end()

    @property
    def settings(self) -> Settings:
        return Settings.read(self.dir.settings)

    @property
    def slurm_conf(self) -> Path:
        return self.dir.slurm_conf

    def command(self, words: Sequence[object]) -> list[str]:
        """The whole command line that runs `words` in the lab, from the current folder, for whoever starts it."""
        supervisor = self._running()
        enter = [] if self.settings.plain else namespaces.make_enter_command(supervisor.pid)
        foreign = [word for name in os.environ if name.startswith("SLURM_") for word in ("-u", name)]  # of an outer job
        return [*enter, "env", *foreign, f"SLURM_CONF={self.slurm_conf}", *map(str, words)]

    def run(
        self, words: Sequence[object], *, timeout: float = 60, check: bool = False, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the lab to its end."""
        command = self.command(words)
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=check, **options)

    def popen(self, words: Sequence[object], **options: Any) -> subprocess.Popen[Any]:
        """Start a command in the lab; signals sent to this process reach it."""
        return subprocess.Popen(self.command(words), **options)

    def processes(self, node: int | None = None) -> list[psutil.Process]:
        """All processes of the lab, or of one node in namespaces, as this machine counts them."""
        supervisor = self._running()
        if node is None:
            return [supervisor, *supervisor.children(recursive=True)]
        init = ["slurm.lab.node", str(self.dir.path), str(node)]
        for process in supervisor.children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.cmdline()[-3:] == init and process.cmdline()[0] == sys.executable:
                    return [process, *process.children(recursive=True)]
        return []

    def node_states(self) -> dict[str, str]:
        """What sinfo says of every node, such as idle, mixed, down; with a `*` where it does not respond."""
        lines = self.run(["sinfo", "-h", "-N", "-p", "main", "-o", "%N %T"]).stdout.splitlines()
        return dict(line.split() for line in lines)

    def is_ready(self) -> bool:
        """Whether every daemon lives and every node responds."""
        if self._ask("dead")["dead"]:
            return False
        states = self.node_states()
        return len(states) == self.settings.nodes and all(map(_responds, states.values()))

    def kill_node(self, number: int, *, mark_down: bool = False) -> None:
        """Power loss. slurmctld notices after half a minute, or at once with `mark_down`."""
        self._ask("kill-node", number)
        if mark_down:
            self.mark_down(number)

    def start_node(self, number: int, *, timeout: float = 30) -> None:
        """Power on again, until the node can take jobs."""
        self._ask("start-node", number)
        deadline = time.monotonic() + timeout
        while not _responds(state := self.node_states().get(f"node{number}", "unknown")):
            if time.monotonic() > deadline:
                raise LockstepError(f"node{number} is {state} after {timeout} s; see {self.dir.log(f'node{number}')}")
            if state.startswith("down"):  # what a person set down only a person sets up again
                self.run(["scontrol", "update", f"nodename=node{number}", "state=resume"])
            time.sleep(0.1)

    def mark_down(self, number: int, reason: str = "lab") -> None:
        """As an administrator does it: the node's jobs end at once with NODE_FAIL."""
        self.run(["scontrol", "update", f"nodename=node{number}", "state=down", f"reason={reason}"], check=True)

    def disconnect_node(self, number: int) -> None:
        """Pull the network cable: the node computes on, and nobody can reach it."""
        self._ask("disconnect-node", number)

    def reconnect_node(self, number: int) -> None:
        self._ask("reconnect-node", number)

    def stop_controller(self) -> None:
        self._ask("stop-controller")

    def start_controller(self) -> None:
        self._ask("start-controller")

    def restart_controller(self) -> None:
        """slurmctld ends, having saved its state, and starts from there; returns when it answers."""
        self.stop_controller()
        self.start_controller()

    def measure_memory(self) -> int:
        """Bytes of all processes together, each shared page counted once."""
        total = 0
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                total += process.memory_full_info().pss
        return total

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Two commands that start or end the same lab do so one after the other."""
        self.dir.path.mkdir(parents=True, exist_ok=True)
        with open(self.dir.lock, "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _start(self, *, plain: bool) -> None:
        """Start the supervisor on its own, and wait for its report: it holds the pipe's only other end."""
        read, write = os.pipe()
        unshare = () if plain else namespaces.UNSHARE
        words = [sys.executable, "-P", "-m", "lockstep", "slurm.lab.supervisor", str(self.dir.path), str(write)]
        with open(self.dir.output("supervisor"), "wb") as log:
            subprocess.run(
                ["setsid", "--fork", *unshare, *words],
                env=os.environ | {"PATH": packages.make_search_path()},
                pass_fds=[write],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                check=True,
            )
        os.close(write)
        with open(read, "rb", buffering=0) as report:
            try:
                ready, _, _ = select.select([report], [], [], _UP_SECONDS)
                message = report.read(10_000).decode() if ready else f"not up within {_UP_SECONDS} s"
            except BaseException:
                self._end()
                raise
            if message != "up":
                self._end()
                report.read()  # nobody holds the other end: it has ended
        if message != "up":
            raise LockstepError(
                f"the lab did not come up: {message or self.dir.output('supervisor').read_text()[-2000:]}"
            )

    def _end(self) -> bool:
        """End the supervisor; pid 1 of namespaces takes everything with it, a plain one kills it in turn."""
        supervisor = self._supervisor()
        if supervisor is not None:
            if supervisor.pid == 1:
                raise UserError("this is inside the lab, which can only be ended from outside")
            with contextlib.suppress(psutil.NoSuchProcess):
                if self.settings.plain:
                    supervisor.terminate()
                else:
                    supervisor.kill()
                supervisor.wait(30)
        left = self._left_behind() if self.dir.settings.exists() and self.settings.plain else []
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.dir.control.unlink(missing_ok=True)
        return supervisor is not None or bool(left)

    def _left_behind(self) -> list[psutil.Process]:
        """Steps of a plain lab whose supervisor was killed: they left its family, but have its slurm.conf or log."""
        steps = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                environment = process.environ()
                in_job = "SLURM_JOB_ID" in environment and environment.get("SLURM_CONF") == str(self.slurm_conf)
                logs = str(self.dir.path / "log")
                is_step = process.name() == "slurmstepd" and any(
                    file.path.startswith(logs) for file in process.open_files()
                )
                if in_job or is_step:
                    steps.append(process)
        return [process for process in steps if process.pid != os.getpid()]

    def _supervisor(self) -> psutil.Process | None:
        """Whoever listens on the control socket: the kernel tells, so a stale file or a reused pid cannot mislead."""
        with socket.socket(socket.AF_UNIX) as control:
            try:
                control.connect(str(self.dir.control))
            except OSError:
                return None
            size = struct.calcsize("3i")
            pid, _, _ = struct.unpack("3i", control.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
        with contextlib.suppress(psutil.NoSuchProcess):
            return psutil.Process(pid)
        return None

    def _running(self) -> psutil.Process:
        if (supervisor := self._supervisor()) is None:
            raise UserError(f"no lab is up in {self.dir.path}; start it with: lockstep lab up")
        return supervisor

    def _ask(self, request: str, *arguments: object) -> dict[str, Any]:
        """Have the supervisor do something; what it refuses is raised here."""
        self._running()
        with socket.socket(socket.AF_UNIX) as control:
            control.settimeout(_ANSWER_SECONDS)
            control.connect(str(self.dir.control))
            control.sendall(json.dumps({"do": request, "with": arguments}).encode() + b"\n")
            answer: dict[str, Any] = json.loads(control.makefile().read() or "{}")
        if "error" in answer:
            raise (UserError if answer["exit_code"] == UserError.exit_code else LockstepError)(answer["error"])
        return answer


def _responds(state: str) -> bool:
    """A node that is up, whatever it is doing, also when it is kept free."""
    return not state.endswith("*") and state.rstrip("~#!%$@^-+").lower() not in ("down", "unknown", "fail", "inval")
