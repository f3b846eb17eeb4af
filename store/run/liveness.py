"""Whether a run's ranks give signs of life: told by their heartbeats, whoever started them."""

import time

from store.run.records import read_heartbeats
from store.run.run_dir import Attempt, RunDir

FRESH = 30.0  # seconds for which a sign of life counts
_WRITES = 8  # heartbeats a second that an attempt may write
_LONGEST_PERIOD = 10.0  # seconds


def choose_heartbeat_period(world_size: int) -> float:
    """Seconds between two heartbeats of a rank. Each makes a file and renames it, on a file system that all share: up
    to 8 ranks do so once a second, 64 ranks every 8 s, so 8 times a second in all; more than 80 every 10 s."""
    return min(max(1.0, world_size / _WRITES), _LONGEST_PERIOD)


def find_training_attempt(run: RunDir) -> Attempt | None:
    """The newest attempt, where its ranks give signs of life."""
    newest = run.attempts()[-1:]
    if not newest or newest[0].end_path.is_file():
        return None
    times = [beat.time for beat in read_heartbeats(newest[0]).values()]
    return newest[0] if times and time.time() - max(times) < FRESH else None
