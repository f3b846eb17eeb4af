"""One run's folder has one attempt at a time: whoever starts it holds a lock that dies with its processes."""

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

from configs.errors import UserError
from store.run.run_dir import RunDir, open_to_append

PATIENCE = 1.0  # seconds: `status` tries the lock, too, and has it for an instant


class RunHeldError(UserError):
    """Somebody else has the run's lock."""


@contextmanager
def hold_run(run: RunDir) -> Iterator[int]:
    """The lock's descriptor, for processes that may outlive this one. Raises HeldError, naming the holder, and
    UserError where the run's folder cannot be written."""
    try:
        run.path.mkdir(parents=True, exist_ok=True)
        file = open(open_to_append(run.lock), "a+", encoding="utf-8")  # noqa: SIM115  (kept open for as long as it is held)
    except OSError as error:
        raise UserError(f"{run.path}: cannot be written ({error.strerror}); name another folder with runs") from None
    with file:
        if not _locked(file.fileno()):
            file.seek(0)
            raise RunHeldError(f"{run.path}: is being trained by {_describe(file.read())}; wait, or stop that one")
        file.truncate(0)
        file.write(json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "time": time.time()}))
        file.flush()
        yield file.fileno()


def is_run_held(run: RunDir) -> bool | None:
    """Whether someone has the run's lock; None where this machine cannot tell, for its holder was on another one.

    A lock of the shared kind is taken for the instant, so that two who ask do not disturb each other.
    """
    try:
        with open(run.lock, encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            text = file.read()
    except OSError:
        return None
    try:
        return False if json.loads(text)["host"] == socket.gethostname() else None
    except (ValueError, KeyError):
        return None


def _locked(descriptor: int) -> bool:
    """Whether the lock is ours now; false where somebody else keeps it."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        else:
            return True


def _describe(text: str) -> str:
    try:
        holder = json.loads(text)
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(holder["time"]))
        return f"process {holder['pid']} on {holder['host']} since {since}"
    except (ValueError, KeyError):
        return "another process"
