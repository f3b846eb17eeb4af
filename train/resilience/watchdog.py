"""Ends an attempt that does not end by itself: its ranks do not stop when they are asked to, or it has a successor.

A notice cannot interrupt a collective: where one rank hangs, the others wait for it. Their watchdogs see which rank's
heartbeat or progress is the oldest, name it, and leave before the machine is taken away.
"""

import os
import time
from typing import NoReturn

from configs.errors import LockstepError
from store.run.records import HeartbeatRecord, read_heartbeat
from train.context import RankContext
from train.progress import WAITING_FOR_OTHERS
from train.resilience.failure import report_failure

UNRESPONSIVE = 5.0  # seconds without a heartbeat that tell a rank that is stopped or gone from one that waits


class Stuck(LockstepError):
    """A notice that the ranks could not answer together in time."""


class Superseded(LockstepError):
    """This attempt goes on although the next one has begun."""


class Watchdog:
    """One rank's; it looks at the heartbeats of all."""

    def __init__(self, context: RankContext):
        self.context = context

    @property
    def stop_timeout(self) -> float:
        """Seconds without progress after a notice; what has taken longer before may do so again."""
        return max(self.context.config.checkpoint.notice_seconds / 2, self.context.progress.longest_stop)

    def exit_if_superseded(self) -> None:
        """An attempt on a node that was cut off from the network may live on beside its successor; it must not write
        into the curves that the two share. Raises OSError where the run's attempts cannot be listed."""
        newest = max((attempt.number for attempt in self.context.run.attempts()), default=0)
        if newest > self.context.attempt.number:
            self.abort(Superseded(f"attempt {newest} of this run has begun"))

    def exit_if_stuck(self) -> None:
        """Where a notice was received, and this rank has made no progress since for longer than it may take."""
        stop, progress = self.context.stop, self.context.progress
        if stop.since is None:
            return
        received = time.time() - (time.monotonic() - stop.since)
        if time.time() - max(received, progress.since) > self.stop_timeout:
            notice = f"{stop.reason} received" if str(stop.reason).startswith("SIG") else stop.reason
            late = f"the ranks did not stop within {self.stop_timeout:.0f} s"
            self.abort(Stuck(f"{notice}, but {late}: {self.find_stuck_rank()}"))

    def find_stuck_rank(self) -> str:
        """Which rank to blame, as half a sentence: the one that has given no heartbeat for longest, or else the one
        that has made no progress for longest."""
        beats: list[HeartbeatRecord] = []
        for rank in range(self.context.world.size):
            try:
                beat = read_heartbeat(self.context.attempt.heartbeat_path(rank))
            except (OSError, LockstepError) as error:
                return f"nobody knows which, as the heartbeat of rank {rank} cannot be read ({error})"
            if beat is None:
                return f"rank {rank} never gave a heartbeat"
            beats.append(beat)
        now = time.time()
        silent = min(beats, key=lambda beat: beat.time)
        age = now - silent.time
        if age > UNRESPONSIVE:
            return f"rank {silent.rank} is unresponsive (last heartbeat {age:.0f} s ago)"
        stuck = min(beats, key=lambda beat: (beat.doing.startswith(WAITING_FOR_OTHERS), beat.step, beat.since))
        place = f"after {stuck.step} steps, for {now - stuck.since:.0f} s"
        return f"rank {stuck.rank} has been {stuck.doing}, {place}"

    def abort(self, error: LockstepError) -> NoReturn:
        """End this process with a failure report; its main thread may hang in a collective."""
        os._exit(report_failure(self.context.attempt, self.context.world.rank, error))
