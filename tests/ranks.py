"""Real ranks for tests: a program run by N processes over gloo, forked from a warm one (see warm.py)."""

import atexit
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

GRACE = 3  # seconds, as the local launcher's
ROOT = Path(__file__).parents[1]


@dataclass
class Ranks:
    """Ranks that run. `wait` answers their exit codes by rank; a killed one's is minus the signal."""

    server: subprocess.Popen
    pids: list[int]
    log: str
    codes: dict[int, int] = field(default_factory=dict)

    def wait(self) -> list[int]:
        """To the end of all. As a launcher would, end the others soon after the first that fails."""
        end = None
        while len(self.codes) < len(self.pids):
            rank, code = json.loads(self.server.stdout.readline())
            self.codes[rank] = code
            if code and end is None:
                end = threading.Timer(GRACE, self.kill)
                end.start()
        if end is not None:
            end.cancel()
        return [self.codes[rank] for rank in range(len(self.pids))]

    def kill(self, *which: int) -> None:
        """SIGKILL these ranks, or all that are left."""
        for rank in which or range(len(self.pids)):
            if rank not in self.codes:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self.pids[rank], signal.SIGKILL)

    def said(self) -> str:
        paths = [Path(f"{self.log}-{rank}") for rank in range(len(self.pids))]
        return "\n".join(path.read_text(errors="replace") for path in paths if path.exists())


def start_ranks(count: int, program: Path, *arguments: object, **environment: object) -> Ranks:
    """Start `program` on `count` ranks, one thread each. One set of ranks at a time."""
    server = _server()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    world = {"WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port} | environment
    request = {
        "program": str(program),
        "arguments": [str(argument) for argument in arguments],
        "count": count,
        "environment": {key: str(value) for key, value in world.items()},
        "log": tempfile.mktemp(prefix="ranks-"),
    }
    server.stdin.write(json.dumps(request) + "\n")
    server.stdin.flush()
    return Ranks(server, json.loads(server.stdout.readline()), request["log"])


def run_ranks(count: int, program: Path, *arguments: object, **environment: object) -> str:
    """Run to the end and answer what the ranks printed. Fails the test where a rank fails."""
    ranks = start_ranks(count, program, *arguments, **environment)
    codes = ranks.wait()
    assert codes == [0] * count, f"exit codes {codes}\n{ranks.said()[-6000:]}"
    return ranks.said()


@cache
def _server() -> subprocess.Popen:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(ROOT)}
    environment |= {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    command = [sys.executable, "-P", str(Path(__file__).with_name("warm.py"))]
    server = subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    atexit.register(server.kill)
    assert json.loads(server.stdout.readline()) == "ready"
    return server
