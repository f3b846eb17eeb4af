"""A heartbeat from each rank, once a second: the file by which others tell a rank that works from one that is gone."""

import json
import os
import socket
import time

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
        beat = {
            "time": time.time(),
            "rank": self.rank,
            "step": progress.step,
            "doing": progress.activity,
            "since": progress.since,
            "host": HOST,
            "pid": os.getpid(),
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(".new")  # nobody but the owner may write in an attempt's folder
        temporary.write_text(json.dumps(beat), encoding="utf-8")
        os.replace(temporary, self.path)
