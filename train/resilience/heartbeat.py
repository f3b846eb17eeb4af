"""A heartbeat from each rank, once a second: the file by which others tell a rank that works from one that is gone."""

import os
import socket
import time

from store.run.records import HeartbeatRecord
from train.context import RankContext

HOST = socket.gethostname()


class Heartbeat:
    """Writes down what this rank is doing."""

    def __init__(self, context: RankContext):
        self.progress = context.progress
        self.rank = context.world.rank
        self.path = context.attempt.heartbeat_path(self.rank)

    def write(self) -> None:
        """Whole or not at all; not flushed to the disk, as the next one is never far. Raises OSError."""
        progress = self.progress
        beat = HeartbeatRecord(
            rank=self.rank,
            host=HOST,
            pid=os.getpid(),
            time=time.time(),
            step=progress.step,
            doing=progress.activity,
            since=progress.since,
        )
        beat.write(self.path, durable=False)
