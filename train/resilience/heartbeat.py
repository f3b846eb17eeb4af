"""A heartbeat from each rank: the file by which others tell a rank that works from one that is stopped or gone.

It costs the shared file system one file made and one renamed; see `choose_heartbeat_period` for how often.
"""

import os
import socket
import time

from store.run.records import HeartbeatRecord
from train.context import RankContext
from train.progress import WAITING_FOR_OTHERS

HOST = socket.gethostname()


class Heartbeat:
    """Writes down what this rank is doing."""

    def __init__(self, context: RankContext):
        self.progress = context.progress
        self.rank = context.world.rank
        self.path = context.attempt.heartbeat_path(self.rank)
        self.waits_in: str | None = None  # the collective in which a rank was found that hangs
        self.collectives: int | None = None  # that such a rank has begun

    def write(self, due: float | None) -> None:
        """Whole or not at all; not flushed to the disk, as the next one is never far. Raises OSError.

        `due`: when this rank must have come to something else, in seconds since the epoch; None where nobody can tell.
        """
        progress = self.progress
        beat = HeartbeatRecord(
            rank=self.rank,
            host=HOST,
            pid=os.getpid(),
            time=time.time(),
            step=progress.step,
            doing=f"{WAITING_FOR_OTHERS} in {self.waits_in}" if self.waits_in else progress.activity,
            since=progress.since,
            due=due,
            collectives=self.collectives,
        )
        beat.write(self.path, durable=False)
