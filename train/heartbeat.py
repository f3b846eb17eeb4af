"""A sign of life from each rank, an ear for people's requests, and a watchdog that ends an attempt whose notice nobody
can answer.

A notice cannot interrupt a collective: where one rank hangs, the others wait for it. Their watchdogs see whose sign of
life is the oldest, name it, and leave before the machine is taken away.
"""

import json
import os
import socket
import threading
import time

from configs.errors import LockstepError
from configs.run_dir import Attempt, RunDir, write_atomic
from train.failure import report
from train.notice import Notice

PERIOD = 1.0  # seconds between two signs of life
HOST = socket.gethostname()


class Stuck(LockstepError):
    """A notice that the ranks could not answer together in time."""


class Superseded(LockstepError):
    """This attempt goes on although the next one has begun."""


class Heartbeat:
    """The loop sets `step`, the steps that are done; a thread writes it down every second, and keeps watch."""

    def __init__(self, run: RunDir, attempt: Attempt, rank: int, size: int, notice: Notice, notice_seconds: float):
        self.run, self.attempt, self.rank, self.size, self.notice = run, attempt, rank, size, notice
        self.patience = notice_seconds / 2
        self.step = 0
        self.save_asked = threading.Event()  # rank 0's: a person wants a checkpoint now
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self.thread.start()

    def stop(self) -> None:
        self.stopped.set()
        self.thread.join()

    def _beat(self) -> None:
        while not self.stopped.wait(PERIOD):
            beat = {"time": time.time(), "rank": self.rank, "step": self.step, "host": HOST, "pid": os.getpid()}
            write_atomic(self.attempt.heartbeat(self.rank), json.dumps(beat))
            if self.rank == 0:
                self._hear()
            if self.notice.since is not None and time.monotonic() - self.notice.since > self.patience:
                self._leave()

    def _hear(self) -> None:
        """Requests in the run's `control` folder. `stop` stays until the next submit, `save` goes once it is heard.

        And whether this attempt still counts: one on a node that was cut off from the network may live on beside its
        successor, and must not write into the curves that the two share.
        """
        if (newest := self.run.attempts()[-1].number) > self.attempt.number:  # cut off, and given up by the cluster
            os._exit(report(self.attempt, self.rank, Superseded(f"attempt {newest} of this run has begun")))
        if self.run.stop_request.is_file():
            self.notice.give(f"stop asked for by {self.run.stop_request.read_text().strip()}")
        if self.run.save_request.is_file():
            self.run.save_request.unlink()
            self.save_asked.set()

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
