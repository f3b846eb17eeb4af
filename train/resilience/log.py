"""A rank's log: everything it prints, from C too. It must not end a run, so on a full disk lines are lost."""

import contextlib
import io
import os
import sys

from store.files import open_to_append
from store.run.run_dir import Attempt


class Log(io.TextIOBase):
    """Writes each piece of text at once; what does not fit on the disk is lost, where print would raise."""

    encoding = "utf-8"

    def fileno(self) -> int:
        return 1

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            os.write(1, text.encode(errors="replace"))
        return len(text)


def open_log(attempt: Attempt, rank: int) -> None:
    """Send standard output and standard error of this process to the rank's own file."""
    log = open_to_append(attempt.log_path(rank))
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.stdout = sys.stderr = Log()
