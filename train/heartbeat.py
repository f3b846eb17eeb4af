"""A sign of life from each rank, and a watchdog that ends an attempt whose notice nobody can answer.

A notice cannot interrupt a collective: where one rank hangs, the others wait for it. Their watchdogs see whose sign of
life is the oldest, name it, and leave before the machine is taken away.
"""

import json
import os
import threading
import time

from configs.errors import LockstepError
from configs.run_dir import Attempt, write_atomic
from train.failure import report
from train.notice import Notice

PERIOD = 1.0  # seconds between two signs of life


class Stuck(LockstepError):
    """A notice that the ranks could not answer together in time."""


class Heartbeat:
    """The loop sets `step`, the steps that are done; a thread writes it down every second, and keeps watch."""

    def __init__(self, attempt: Attempt, rank: int, size: int, notice: Notice, notice_seconds: float):
        self.attempt, self.rank, self.size, self.notice = attempt, rank, size, notice
        self.patience = notice_seconds / 2
        self.step = 0
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self.thread.start()

    def stop(self) -> None:
        self.stopped.set()
        self.thread.join()

    def _beat(self) -> None:
        while not self.stopped.wait(PERIOD):
            beat = {"time": time.time(), "rank": self.rank, "step": self.step, "pid": os.getpid()}
            write_atomic(self.attempt.heartbeat(self.rank), json.dumps(beat))
            if self.notice.since is not None and time.monotonic() - self.notice.since > self.patience:
                self._leave()

    def _leave(self) -> None:
        rank, step, age = self._oldest()
        stuck = Stuck(
            f"{self.notice.reason} came {self.patience:g} s ago and no step has ended since; rank {rank} hangs in step "
            f"{step + 1}: its last sign of life is {age:.0f} s old"
        )
        os._exit(report(self.attempt, self.rank, stuck))

    def _oldest(self) -> tuple[int, int, float]:
        """Rank, step and age in seconds of the oldest sign of life."""
        now, beats = time.time(), []
        for rank in range(self.size):
            path = self.attempt.heartbeat(rank)
            beat = json.loads(path.read_text()) if path.exists() else {"time": 0.0, "step": 0}
            beats.append((beat["time"], rank, beat["step"]))
        seen, rank, step = min(beats)
        return rank, step, now - seen
