"""How two programs that must not disturb each other take turns: each makes a block of steps when it is told to.

The one that measures holds a `Player` of each; inside the program a `Turns` stands before every step.
"""

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import torch

from bench.machine import ROOT

READY = [0.0, 0.0]  # the answer to the first wait, before any step


class Turns:
    """Blocks of steps, as they are asked for on stdin; answers on what stdout was when this was made.

    A block ends where the next step would begin, so all that stands between two steps is in it.
    """

    def __init__(self) -> None:
        self.answers = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)  # whatever else is printed goes to the log
        self.left = 0
        self.began: tuple[float, float] | None = None

    def before_step(self) -> None:
        """Call it before each step. Ends the process when no more are asked for."""
        if self.left == 0:
            self._answer()
            line = sys.stdin.readline()
            if not line:
                os._exit(0)  # workers and threads are of no use any more
            self.left, self.began = int(line), self._clock()
        self.left -= 1

    def _answer(self) -> None:
        answer = READY
        if self.began is not None:
            answer = [now - then for now, then in zip(self._clock(), self.began, strict=True)]
        print(json.dumps(answer), file=self.answers)

    def _clock(self) -> tuple[float, float]:
        """The time, and the CPU time of this process and its workers, once the device is done."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        this = psutil.Process()
        spent = sum(this.cpu_times()[:4])  # its own, and of children that have ended
        for child in this.children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended, and counts at the next look
                spent += sum(child.cpu_times()[:2])
        return time.perf_counter(), spent


class Player:
    """A program with `Turns` in it."""

    def __init__(self, module: str, options: dict[str, Any], environment: dict[str, str], log: Path):
        self.log = log
        command = [sys.executable, "-m", module, json.dumps(options)]
        with open(log, "w") as output:
            self.process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                text=True,
            )

    def wait(self) -> tuple[float, float]:
        """Seconds and CPU seconds of the block that was begun. Ends this program where the other one failed."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"{self.process.args}\n{self.log.read_text()[-8000:]}")
        return tuple(json.loads(line))

    def play(self, steps: int) -> tuple[float, float]:
        """Make `steps` steps; answers their seconds and CPU seconds."""
        assert self.process.stdin is not None
        print(steps, file=self.process.stdin, flush=True)
        return self.wait()

    def end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()
