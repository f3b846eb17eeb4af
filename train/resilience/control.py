"""What asks a run to stop or to save, besides signals: the requests in its `control` folder, and the time limit."""

import math
import os
import stat
import time
from pathlib import Path

from store.run.end import TIME_LIMIT
from store.run.records import Allocation
from train.context import RankContext

UNNAMED = "somebody"  # who made a request that names nobody
NAME_BYTES = 80  # of a request that are read
MARGIN = 10.0  # seconds before the time limit for all that is neither a step nor a save


class ControlPoller:
    """Rank 0's: polls control/ for save and stop requests, and the clock for the time limit."""

    def __init__(self, context: RankContext):
        self.context = context
        allocation = Allocation.read_if_written(context.attempt.allocation_path)
        self.deadline = allocation.deadline if allocation is not None else None  # in seconds since the epoch

    def poll_requests(self) -> None:
        """A stop request stays until the next submit; a save request goes once it is received.

        Raises OSError where nobody can tell whether there is one.
        """
        run = self.context.run
        name = _read_request(run.stop_request_path)
        if name is not None:
            self.context.stop.receive(f"stop requested by {name}")
        if _read_request(run.save_request_path) is not None:
            run.save_request_path.unlink()
            self.context.save_requested.set()

    def check_time_limit(self) -> None:
        """SLURM's own notice comes at a time that was settled before a step or a save was ever measured."""
        left = math.inf if self.deadline is None else self.deadline - time.time()
        if left < MARGIN + self.context.progress.longest_stop:
            self.context.stop.receive(f"{TIME_LIMIT} in {left:.0f} s")


def _read_request(request: Path) -> str | None:
    """Who made the request, as a short line; None where there is no request.

    Whoever may write in the folder can put anything there: a link to a file of ours, which is not to be read out to
    them, a pipe that nobody writes into, a line that plays with the terminal. Raises OSError where nobody can tell
    whether there is one.
    """
    try:
        descriptor = os.open(request, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except PermissionError:  # of a colleague whose umask lets nobody read it, or else the folder cannot be searched now
        return UNNAMED if stat.S_ISREG(os.lstat(request).st_mode) else None
    except OSError:
        return None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
            return None
        first_line = os.read(descriptor, NAME_BYTES).decode(errors="replace").partition("\n")[0]
    finally:
        os.close(descriptor)
    return "".join(filter(str.isprintable, first_line)).strip() or UNNAMED
