"""A notice asks the run to stop: SIGTERM or SIGUSR2 on any one rank."""

import signal
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR2)


class Notice:
    """A flag that a signal sets and the loop reads at step boundaries.

    The launcher starts ranks with SIGUSR2 blocked, so that a notice during start-up waits here instead of killing.
    """

    def __init__(self) -> None:
        self.reason: str | None = None
        for number in SIGNALS:
            signal.signal(number, self._arrived)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the launcher's to pass on
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)

    def _arrived(self, number: int, _: FrameType | None) -> None:
        self.reason = signal.Signals(number).name

    @property
    def given(self) -> bool:
        return self.reason is not None
