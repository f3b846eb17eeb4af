"""What a rank is doing, told by its main thread and read by the thread that watches beside it."""

import time

# How the activity begins of a rank that is not the one to blame: every rank of a stuck attempt waits, but for one.
WAITING_FOR_OTHERS = "waiting for the other ranks"


class Progress:
    """The steps that are done, and what this rank's main thread is at now. Its times are in seconds."""

    def __init__(self) -> None:
        self.step = 0
        self.longest_step = self.longest_save = 0.0
        self.set_activity("loading")

    @property
    def longest_stop(self) -> float:
        """Seconds that a stop in good order may take: a step may just have begun, and a save be in flight."""
        return 2 * (self.longest_step + self.longest_save)

    def set_activity(self, activity: str) -> None:
        """Whenever the main thread comes to something else. Words that continue "rank 1 has been …"."""
        self.activity, self.since = activity, time.time()

    def record_step(self, step: int, seconds: float) -> None:
        """`step` is done, and took `seconds`."""
        self.step = step
        self.longest_step = max(self.longest_step, seconds)

    def record_save(self, seconds: float) -> None:
        """A save took `seconds` from its copy to its file."""
        self.longest_save = max(self.longest_save, seconds)
