"""How far the encoding is, as a line of rank 0's log now and then."""

import time

PERIOD = 10.0  # seconds between two lines


class ProgressLine:
    """Of `total` samples."""

    def __init__(self, noun: str, total: int):
        self.noun, self.total = noun, total
        self.began = self.shown = time.monotonic()
        self.is_over = False
        self.first: int | None = None  # samples that were done at the first look

    def show(self, done: int) -> None:
        """`done` samples are encoded, whoever did it. Prints where it is time for it, and when all are done."""
        now = time.monotonic()
        if self.first is None:
            self.first = done
        is_due = now - self.shown >= PERIOD or done == self.total
        if not is_due or self.is_over:
            return
        self.is_over = done == self.total
        self.shown = now
        speed = (done - self.first) / max(now - self.began, 1e-9)
        left = f", {speed:.3g} per second, {_format_time((self.total - done) / speed)} left" if speed else ""
        print(f"encoding {self.noun}: {done:,} of {self.total:,} ({done / self.total:.0%}){left}", flush=True)


def _format_time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
