"""What a rank is doing, told by its main thread and read by the thread that watches beside it."""

import time

# How the activity begins of a rank that is not the one to blame: every rank of a stuck attempt waits, but for one.
WAITING_FOR_OTHERS = "waiting for the other ranks"
LOADING = "loading"  # until the first step
IN_PASSES = "in a micro-batch's passes"
_TIMES_LONGEST = 10  # what has taken long before may take this many times as long
_TIMES_FIRST = 3  # what has not ended once, such as a step that compiles, may take this many times the time for a hang


class Progress:
    """The steps that are done, and what this rank's main thread is at now. Its times are in seconds."""

    def __init__(self) -> None:
        self.step = 0
        self.steps_made = 0  # by this attempt
        self.longest_step = self.longest_save = 0.0
        self.activity, self.since = LOADING, time.time()
        self._longest: dict[str, float] = {}  # by the activities that have ended

    @property
    def longest_stop(self) -> float:
        """Seconds that a stop in good order may take: a step may just have begun, and a save be in flight."""
        return 2 * (self.longest_step + self.longest_save)

    def set_activity(self, activity: str) -> None:
        """Whenever the main thread comes to something else. Words that continue "rank 1 has been …"."""
        now = time.time()
        self._record_activity(now - self.since)
        self.activity, self.since = activity, now

    def record_step(self, step: int, seconds: float) -> None:
        """`step` is done, and took `seconds`.

        The attempt's first step compiles, which no later one does: it tells how long they may take only until the
        second is done.
        """
        self.step = step
        self.steps_made += 1
        if self.steps_made == 2:
            self.longest_step = 0.0
            self._longest.pop(IN_PASSES, None)
        self.longest_step = max(self.longest_step, seconds)

    def record_save(self, seconds: float) -> None:
        """A save took `seconds` from its copy to its file; the main thread, which is at it now, need not have waited
        for all of it."""
        self.longest_save = max(self.longest_save, seconds)
        self._record_activity(seconds)

    def find_longest_wait(self, hang_seconds: float) -> float | None:
        """Seconds that the main thread may be at its present activity before it hangs; None where nobody can tell.

        An activity is one of a step's (samples, a micro-batch's passes, reporting), a save's or the sample pictures':
        each has its own longest time. Loading reads as much as there is, from any disk, and is not judged.
        """
        if self.activity == LOADING:
            return None
        longest = self._longest.get(self.activity)
        if longest is None:
            return max(_TIMES_FIRST * hang_seconds, _TIMES_LONGEST * self.longest_step)
        return max(hang_seconds, _TIMES_LONGEST * max(longest, self.longest_step))

    def _record_activity(self, seconds: float) -> None:
        self._longest[self.activity] = max(self._longest.get(self.activity, 0.0), seconds)
