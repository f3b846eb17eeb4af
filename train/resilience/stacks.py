"""What a rank that hangs is at: the stacks of its own threads, and what the kernel tells of a neighbour's process."""

import faulthandler
import os
import re
import sys
import threading
from pathlib import Path
from types import FrameType

from store.files import write_atomic
from store.run.records import HeartbeatRecord
from store.run.run_dir import Attempt

# What /proc/PID/status calls the state of a process.
_STATES = {
    "T": "it is stopped by a signal",
    "t": "it is stopped by a debugger",
    "D": "it waits in the kernel, where no signal reaches it",
    "Z": "its process has ended",
    "X": "its process has ended",
    "R": "it runs",
    "S": "it sleeps",
}
_COLLECTIVE_FILE = re.compile(r"torch/distributed/distributed_c10d\.py$")
_PROC = Path("/proc")


def write_stacks(attempt: Attempt, rank: int, headline: str) -> None:
    """Write the stacks of all threads of this process below `headline`. Raises OSError."""
    path = attempt.stack_path(rank)
    path.parent.mkdir(exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        print(f"{headline}\nmain thread: {describe_process(os.getpid())}\n", file=file, flush=True)
        faulthandler.dump_traceback(file, all_threads=True)


def write_neighbour(attempt: Attempt, beat: HeartbeatRecord) -> None:
    """For a rank on this host that does not answer: what the kernel tells of its process. Raises OSError."""
    text = f"rank {beat.rank} on {beat.host} (process {beat.pid}): {describe_process(beat.pid)}\n"
    write_atomic(attempt.stack_path(beat.rank), text, durable=False)


def read_neighbour(attempt: Attempt, rank: int) -> str | None:
    """What a rank on its host found out about `rank`; None where none did. Raises OSError."""
    path = attempt.stack_path(rank)
    return path.read_text(encoding="utf-8").partition("): ")[2].strip() if path.is_file() else None


def describe_process(pid: int) -> str:
    """The state of the main thread of process `pid` on this machine, and where in the kernel it is."""
    try:
        status = (_PROC / str(pid) / "status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return "its process is gone"
    letter = (re.search(r"^State:\s+(\S)", status, re.MULTILINE) or ["", "?"])[1]
    state = _STATES.get(letter, f"its process is in state {letter}")
    try:
        place = (_PROC / str(pid) / "wchan").read_text().strip("\0\n ")
    except OSError:  # a kernel that does not tell
        place = "0"  # as it says of a process that is not in it, or where it does not tell us
    return state if place in ("", "0") else f"{state} ({place})"


def find_collective() -> str | None:
    """The collective of torch's in which this process's main thread waits for other ranks; None where it is in none.

    On a GPU a collective is only queued, and the wait is elsewhere: there the flight recorder tells.
    """
    frame: FrameType | None = sys._current_frames().get(threading.main_thread().ident or 0)
    collective = None
    # From the innermost call outwards: the outermost one of torch's is the one that was called.
    while frame is not None:
        if _COLLECTIVE_FILE.search(frame.f_code.co_filename):
            collective = frame.f_code.co_name
        frame = frame.f_back
    return collective
