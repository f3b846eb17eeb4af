"""The processes that the supervisor starts: each with a log, awaited with a deadline, and missed when it dies."""

import contextlib
import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from configs.errors import LockstepError
from slurm.lab.lab_dir import LabDir
from slurm.lab.packages import make_search_path

_SET_PARENT_DEATH_SIGNAL = 1  # of prctl
_POLL_SECONDS = 0.05
_libc = ctypes.CDLL(None)


class Daemons:
    """By name. The supervisor may be pid 1, so orphans are reaped here as well."""

    def __init__(self, lab: LabDir):
        self.lab = lab
        ours = {key: value for key, value in os.environ.items() if not key.startswith("SLURM_")}
        self.environment = ours | {"SLURM_CONF": str(lab.slurm_conf), "PATH": make_search_path()}
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._ended: dict[str, int] = {}

    def start(self, name: str, command: Sequence[str], *, wait_for_line: bool = False, **environment: str) -> int:
        """Its pid. With `wait_for_line` it can be held back: it reads a line first, which `release` writes."""
        self._ended.pop(name, None)
        with open(self.lab.output(name), "ab") as log:
            self._running[name] = subprocess.Popen(
                command,
                env=self.environment | environment,
                stdin=subprocess.PIPE if wait_for_line else subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )
        return self._running[name].pid

    def release(self, name: str) -> None:
        line = self._running[name].stdin
        assert line is not None
        with contextlib.suppress(BrokenPipeError):  # it died; who awaits it will say why
            line.write(b"\n")
            line.close()

    def wait(self, goal: str, ready: Callable[[], bool], names: Sequence[str], seconds: float = 60) -> None:
        """Until `ready()`. If one of `names` dies meanwhile, or time is up, its log's last lines are the message."""
        deadline = time.monotonic() + seconds
        while not ready():
            self.reap()
            for name in names:
                if name in self._ended:
                    raise LockstepError(f"{name} ended with {self._ended[name]}; {self._last_words(name)}")
            if time.monotonic() > deadline:
                raise LockstepError(f"{goal}: not within {seconds:.0f} s; {self._last_words(names[0])}")
            time.sleep(_POLL_SECONDS)

    def run_once(self, name: str, command: Sequence[str], standard_input: Path) -> None:
        """A daemon's program that does one thing and ends, before the daemon starts."""
        with open(self.lab.output(name), "ab") as log, open(standard_input, "rb") as words:
            done = subprocess.run(command, env=self.environment, stdin=words, stdout=log, stderr=log, check=False)
        if done.returncode != 0:
            raise LockstepError(f"{name} failed with {done.returncode}; {self._last_words(name)}")

    def call(self, *command: str) -> str:
        """What a short command prints, or nothing where it fails."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            done = subprocess.run(
                command, env=self.environment, capture_output=True, text=True, timeout=20, check=False
            )
            return done.stdout if done.returncode == 0 else ""
        return ""

    def pid(self, name: str) -> int | None:
        """Of a daemon that runs."""
        self.reap()
        return self._running[name].pid if name in self._running else None

    def stop(self, name: str, number: signal.Signals, pid: int | None = None, seconds: float = 30) -> None:
        """End it, by a signal to itself or to the child `pid` that it waits for, and wait until it has gone."""
        if (own := self.pid(name)) is None:
            return
        os.kill(pid or own, number)
        deadline = time.monotonic() + seconds
        while self.pid(name) is not None:
            if time.monotonic() > deadline:
                raise LockstepError(f"{name} does not end; {self._last_words(name)}")
            time.sleep(_POLL_SECONDS / 5)
        self._ended.pop(name, None)

    def list_dead(self) -> list[str]:
        """Those that ended by themselves."""
        self.reap()
        return sorted(self._ended)

    def reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while (reaped := os.waitpid(-1, os.WNOHANG))[0]:
                for name, process in list(self._running.items()):
                    if process.pid == reaped[0]:
                        process.returncode = self._ended[name] = os.waitstatus_to_exitcode(reaped[1])
                        del self._running[name]

    def _last_words(self, name: str) -> str:
        log = self.lab.output(name)
        lines = log.read_text(errors="replace").splitlines()[-8:] if log.exists() else []
        return "\n".join([f"the end of {log}:", *lines])


def _die_with_parent() -> None:
    _libc.prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
