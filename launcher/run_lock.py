"""One run's folder has one attempt at a time: whoever starts it holds a lock that dies with its processes."""

import fcntl
import os
import shlex
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psutil

from configs.errors import LockstepError, UserError
from store.files import open_to_append
from store.run.records import Record, read_heartbeats
from store.run.run_dir import RunDir

PATIENCE = 1.0  # seconds: `status` tries the lock, too, and has it for an instant


class RunHeldError(UserError):
    """Somebody else has the run's lock."""


@dataclass(frozen=True)
class LockHolder(Record):
    """Who has the run's lock, or had it last."""

    host: str
    pid: int
    time: float  # when it was taken, in seconds since the epoch
    attempt: int | None = None  # that it trains, on this machine; None: it does something else, or has yet to begin


@contextmanager
def hold_run(run: RunDir) -> Iterator[int]:
    """The lock's descriptor, for processes that may outlive this one.

    Raises RunHeldError, naming who has it, and UserError where the run's folder cannot be written.
    """
    try:
        run.path.mkdir(parents=True, exist_ok=True)
        file = open(open_to_append(run.lock_path), "a+b")  # noqa: SIM115  (kept open for as long as it is held)
    except OSError as error:
        raise UserError(f"{run.path}: cannot be written ({error.strerror}); name another folder with runs") from None
    with file:
        if not _try_lock(file.fileno()):
            file.seek(0)
            raise RunHeldError(_describe_holder(run, _parse_holder(run, file.read())))
        _write_holder(file.fileno(), None)
        yield file.fileno()


def name_attempt(lock: int, attempt: int) -> None:
    """Note down that whoever has the run's lock, whose descriptor is `lock`, trains `attempt` from now on."""
    _write_holder(lock, attempt)


def _write_holder(lock: int, attempt: int | None) -> None:
    os.ftruncate(lock, 0)
    os.write(lock, LockHolder(socket.gethostname(), os.getpid(), time.time(), attempt).to_text().encode())


def read_trained_attempt(run: RunDir) -> int | None:
    """The attempt that whoever had the run's lock last trains or trained here; None where it did something else."""
    try:
        holder = _parse_holder(run, run.lock_path.read_bytes())
    except OSError:
        return None
    return holder.attempt if holder is not None else None


def is_run_held(run: RunDir) -> bool | None:
    """Whether someone has the run's lock; None where this machine cannot tell, for its holder was on another one.

    A lock of the shared kind is taken for the instant, so that two who ask do not disturb each other.
    """
    try:
        with open(run.lock_path, "rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            holder = _parse_holder(run, file.read())
    except OSError:
        return None
    return False if holder is not None and holder.host == socket.gethostname() else None


def _parse_holder(run: RunDir, content: bytes) -> LockHolder | None:
    """None for a file that does not tell: it is written after the lock is taken."""
    try:
        return LockHolder.parse(content, run.lock_path)
    except LockstepError:
        return None


def _try_lock(descriptor: int) -> bool:
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


def _describe_holder(run: RunDir, holder: LockHolder | None) -> str:
    """Whose the run is, and what to do. torchrun inherits the lock: where the process that took it was killed, the
    ranks have it, and they are named instead."""
    if holder is None:
        return f"{run.path}: is in use by another process; try again once that has ended"
    attempts, path = run.attempts(), shlex.quote(str(run.path))
    here = holder.host == socket.gethostname()
    if not here or _is_alive(holder.pid, holder.time) or not attempts:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(holder.time))
        process = f"process {holder.pid} on {holder.host} since {since}"
        stop = f", or stop it: lockstep stop {path}" if holder.attempt is not None else ""
        return f"{run.path}: is in use by {process}; wait until that ends{stop}"
    ranks = [
        f"rank {rank} (process {beat.pid})"
        for rank, beat in read_heartbeats(attempts[-1]).items()
        if beat.host == holder.host and _is_alive(beat.pid, beat.time)
    ]
    living = ", ".join(ranks) or "its ranks are starting, or ending"
    return (
        f"{run.path}: attempt {attempts[-1].number} is still running on {holder.host}: {living}; "
        f"process {holder.pid}, which started it, has ended\n"
        f"watch it with: lockstep logs {path} -f\nstop it with: lockstep stop {path}"
    )


def _is_alive(pid: int, when: float) -> bool:
    """Whether the process that had the number `pid` at the time `when` still runs: numbers are given again."""
    try:
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE and process.create_time() <= when
    except psutil.NoSuchProcess:
        return False
