"""Whether a run's ranks give signs of life: told by their heartbeats, whoever started them."""

import time

from store.run.records import read_heartbeats
from store.run.run_dir import Attempt, RunDir

FRESH = 30.0  # seconds for which a sign of life counts


def find_training_attempt(run: RunDir) -> Attempt | None:
    """The newest attempt, where its ranks give signs of life."""
    newest = run.attempts()[-1:]
    if not newest or newest[0].end_path.is_file():
        return None
    times = [beat.time for beat in read_heartbeats(newest[0]).values()]
    return newest[0] if times and time.time() - max(times) < FRESH else None
