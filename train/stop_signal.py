"""A notice asks the run to stop: SIGTERM or SIGUSR2 on any one rank, a person, or the time limit.

A thread waits for the signals: a rank that hangs in a collective runs no Python handler, and must still know that its
time is up.
"""

import signal
import threading
import time

SIGNALS = (signal.SIGTERM, signal.SIGUSR2)


class StopSignal:
    """What a notice leaves behind; the loop reads it at step boundaries. Only one may exist in a process."""

    def __init__(self) -> None:
        self.reason: str | None = None  # a signal's name, or who or what asked
        self.since: float | None = None  # time.monotonic
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # in this thread, and so in all that it starts
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the launcher's to pass on
        threading.Thread(target=self._wait, name="notice", daemon=True).start()

    @property
    def received(self) -> bool:
        return self.reason is not None

    def receive(self, reason: str) -> None:
        """The first one counts."""
        if self.reason is None:
            self.since = time.monotonic()
            self.reason = reason

    def _wait(self) -> None:
        while True:
            self.receive(signal.Signals(signal.sigwait(SIGNALS)).name)
