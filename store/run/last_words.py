"""The last words in the log of a rank that left no failure report."""

import re
from pathlib import Path

# Of a process that C++ ends, as NCCL's watchdog does with SIGABRT; and those of a victim among them.
_ABORT = re.compile(r"watchdog thread terminated with exception: (.+)|^\s*what\(\):\s+(.+)", re.MULTILINE)
_VICTIM = re.compile(r"collective operation timeout|communicator was aborted|remote process exited")
_TAIL = 65_536  # bytes of a log in which they are looked for


def find_last_words(log: Path) -> str:
    """What a rank was aborted for; empty where it was not, or only because of another rank. Raises OSError."""
    if not log.is_file():
        return ""
    with open(log, "rb") as file:
        file.seek(max(0, log.stat().st_size - _TAIL))
        found = [match[1] or match[2] for match in _ABORT.finditer(file.read().decode(errors="replace"))]
    return found[0].strip() if found and not _VICTIM.search(found[0]) else ""
