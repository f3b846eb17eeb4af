"""A sign of life from each rank, an ear for people's requests, and a watchdog that ends an attempt whose notice nobody
can answer.

A notice cannot interrupt a collective: where one rank hangs, the others wait for it. Their watchdogs see whose sign of
life or whose progress is the oldest, name it, and leave before the machine is taken away.
"""

import itertools
import json
import math
import os
import socket
import stat
import threading
import time
from pathlib import Path

from configs.errors import LockstepError
from store.run.end import TIME_LIMIT
from store.run.run_dir import Attempt, RunDir, write_atomic
from train.resilience.failure import report_failure
from train.resilience.stop_signal import StopSignal

PERIOD = 1.0  # seconds between two signs of life
SUCCESSOR_BEATS = 5  # periods between two looks for a later attempt: a look lists a folder that all ranks share
SOMEBODY = "somebody"  # who asked, where a request does not say
SILENT = 5.0  # seconds without one that tell a rank that is stopped or gone from one that waits
MARGIN = 10.0  # seconds before the time limit for all that is neither a step nor a save
LONGEST = 80  # bytes of who asked that are read
OTHERS = "waiting for the other ranks"  # how what a rank does begins when it is not the one to blame
HOST = socket.gethostname()


class Stuck(LockstepError):
    """A notice that the ranks could not answer together in time."""


class Superseded(LockstepError):
    """This attempt goes on although the next one has begun."""


class Progress:
    """What this rank's main thread is doing, and since when: it says so itself, whenever it comes to something else."""

    def __init__(self) -> None:
        self.step = 0  # steps that are done
        self.longest_step = self.longest_save = 0.0  # seconds
        self.now("loading")

    @property
    def work_left(self) -> float:
        """Seconds that an answer to a notice may take: a step may just have begun, and a save be in flight."""
        return 2 * (self.longest_step + self.longest_save)

    def now(self, doing: str) -> None:
        self.doing, self.since = doing, time.time()


class Heartbeat:
    """A thread that writes `progress` down every second, and keeps watch."""

    def __init__(
        self,
        run: RunDir,
        attempt: Attempt,
        rank: int,
        size: int,
        notice: StopSignal,
        progress: Progress,
        seconds: float,
    ):
        self.run, self.attempt, self.rank, self.size = run, attempt, rank, size
        self.notice, self.progress = notice, progress
        self.time_is_over = attempt.time_is_over
        self.seconds = seconds  # between a notice and the machine's end
        self.save_asked = threading.Event()  # rank 0's: a person wants a checkpoint now
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self.thread.start()

    def patience(self) -> float:
        """Seconds without progress after a notice; what has taken longer before may do so again."""
        return max(self.seconds / 2, self.progress.work_left)

    def stop(self) -> None:
        self.stopped.set()
        self.thread.join()

    def _beat(self) -> None:
        alarmed = False
        for beat in itertools.count():
            if self.stopped.wait(PERIOD):
                return
            try:
                self._write()
                if self.rank == 0:
                    self._hear()
                if beat % SUCCESSOR_BEATS == 0:
                    self._make_way()
            except OSError as error:  # a full disk must not end the watch
                if not alarmed:
                    print(f"ALARM: no sign of life can be written: {error}", flush=True)
                alarmed = True
            if self.notice.since is not None:
                asked = time.time() - (time.monotonic() - self.notice.since)
                if time.time() - max(asked, self.progress.since) > self.patience():
                    self._leave()

    def _write(self) -> None:
        now = self.progress
        beat = {"time": time.time(), "rank": self.rank, "step": now.step, "doing": now.doing, "since": now.since}
        write_atomic(self.attempt.heartbeat(self.rank), json.dumps(beat | {"host": HOST, "pid": os.getpid()}))

    def _hear(self) -> None:
        """Requests in the run's `control` folder. `stop` stays until the next submit, `save` goes once it is heard.

        And the clock: SLURM's own notice comes at a time that was settled before a step or a save was ever measured.
        """
        if self._time_left() < MARGIN + self.progress.work_left:
            self.notice.give(f"{TIME_LIMIT} in {self._time_left():.0f} s")
        who = _who_asked(self.run.stop_request)
        if who is not None:
            self.notice.give(f"stop asked for by {who}")
        if _who_asked(self.run.save_request) is not None:
            self.run.save_request.unlink()
            self.save_asked.set()

    def _time_left(self) -> float:
        return math.inf if self.time_is_over is None else self.time_is_over - time.time()

    def _make_way(self) -> None:
        """An attempt on a node that was cut off from the network may live on beside its successor; it must not write
        into the curves that the two share."""
        newest = max((attempt.number for attempt in self.run.attempts()), default=0)
        if newest > self.attempt.number:
            os._exit(report_failure(self.attempt, self.rank, Superseded(f"attempt {newest} of this run has begun")))

    def _leave(self) -> None:
        stuck = Stuck(f"{self.notice.reason} came and was not answered in {self.patience():.0f} s: {self._culprit()}")
        os._exit(report_failure(self.attempt, self.rank, stuck))

    def _culprit(self) -> str:
        """The rank that gave no sign of life for longest, or else that made no progress for longest."""
        now, beats = time.time(), []
        for rank in range(self.size):
            path = self.attempt.heartbeat(rank)
            if not path.exists():
                return f"rank {rank} never gave a sign of life"
            beats.append(json.loads(path.read_text()))
        silent = min(beats, key=lambda beat: beat["time"])
        stuck = min(beats, key=lambda beat: (beat["doing"].startswith(OTHERS), beat["step"], beat["since"]))
        if now - silent["time"] > SILENT:
            return f"rank {silent['rank']} hangs: its last sign of life is {now - silent['time']:.0f} s old"
        place = f"after {stuck['step']} steps, for {now - stuck['since']:.0f} s"
        return f"rank {stuck['rank']} has been {stuck['doing']}, {place}"


def _who_asked(request: Path) -> str | None:
    """What a request says of who asked, as a short line; None where there is no request.

    Whoever may write in the folder can put anything there: a link to a file of ours, which is not to be read out to
    them, a pipe that nobody writes into, a line that plays with the terminal. Raises OSError where nobody can tell
    whether there is one.
    """
    try:
        descriptor = os.open(request, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except PermissionError:  # of a colleague whose umask lets nobody read it, or else the folder cannot be searched now
        return SOMEBODY if stat.S_ISREG(os.lstat(request).st_mode) else None
    except OSError:
        return None
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
            return None
        line = os.read(descriptor, LONGEST).decode(errors="replace").partition("\n")[0]
    finally:
        os.close(descriptor)
    return "".join(filter(str.isprintable, line)).strip() or SOMEBODY
