"""A rank that fails says so in a file of its own before it dies: time, place, step and cause."""

import os
import socket
import sys
import time
import traceback

from configs.errors import LockstepError
from store.run.records import FailureReport, StuckRank
from store.run.run_dir import Attempt

# What torch says on a rank whose neighbour died or hangs. Such a rank is a victim, not the cause.
_PEER_LOST = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "remote process exited",
    "Connection closed by remote peer",  # NCCL's own sockets
    "ncclRemoteError",
    "SocketImpl",
    "Socket Timeout",
    "Timed out waiting",  # gloo's own time-out
    "wait timeout after",  # these four: the store through which a group is formed, when rank 0 is gone or hangs
    "Failed to recv, got 0 bytes",
    "Failed to send, sent 0 bytes",
    "The client socket has timed out",
    "NCCL communicator was aborted",
    "Watchdog caught collective operation timeout",
)


class Stuck(LockstepError):
    """The ranks hang, or could not answer a notice together in time; `rank` is the one to blame, where it is known."""

    def __init__(self, message: str, rank: StuckRank | None):
        super().__init__(message)
        self.rank = rank


def _is_peer_lost(error: BaseException) -> bool:
    return any(sign in str(error) for sign in _PEER_LOST)


def report_failure(attempt: Attempt, rank: int, error: BaseException) -> int:
    """Write the failure report of this rank, and tell it in its log. Returns the exit code that `rank` ends with."""
    is_ours = isinstance(error, LockstepError)  # a sentence that says all
    exit_code = error.exit_code if isinstance(error, LockstepError) else LockstepError.exit_code
    sys.stdout.flush()
    report = FailureReport(
        rank=rank,
        host=socket.gethostname(),
        pid=os.getpid(),
        time=time.time(),
        log_size=os.fstat(sys.stdout.fileno()).st_size,  # what follows in the log is this failure
        error=type(error).__name__,
        message=str(error),
        peer_lost=error.is_victim if isinstance(error, LockstepError) else _is_peer_lost(error),
        traceback=None if is_ours else "".join(traceback.format_exception(error)),
        exit_code=exit_code,
        stuck=error.rank if isinstance(error, Stuck) else None,
    )
    try:
        report.write(attempt.failure_path(rank))
    except OSError as unwritten:  # on a full disk, say, the rank must end all the same
        print(f"ALARM: the failure report could not be written: {unwritten}", flush=True)
    if is_ours:
        print(error, flush=True)
    else:
        traceback.print_exception(error)
    return exit_code
