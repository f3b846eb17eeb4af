"""`lockstep logs`: what one rank has printed, and with `follow` what it goes on printing, from attempt to attempt."""

import sys
import time
from pathlib import Path

import click

from configs.errors import UserError
from launcher.monitor import status
from launcher.monitor.status_text import format_steps
from store.run.attempt_plan import AttemptPlan
from store.run.records import Allocation
from store.run.run_dir import Attempt, RunDir

POLL = 0.2  # seconds between two looks at the log
ASK = 5.0  # seconds between two looks at the whole run, which ask SLURM, and only while the log stands still
_BLOCK = 1 << 20  # bytes


def show_log(run: RunDir, rank: int, number: int | None) -> None:
    """Print the whole log of `rank`, from attempt `number` or the newest. Raises UserError where there is none."""
    attempt = _choose_attempt(run, number)
    if attempt is None:
        raise UserError(f"{run.path}: has begun no attempt yet; it is {_describe_state(status.read_status(run))}")
    log = attempt.log_path(rank)
    if not log.is_file():
        raise UserError(_explain_missing_log(attempt, rank))
    _Tail(log).print_new()


def follow_log(run: RunDir, rank: int, number: int | None) -> None:
    """The same, and all that is added, over every later attempt until the run's end. Ctrl-C leaves."""
    try:
        _Follower(run, rank, _choose_attempt(run, number)).follow()
    except KeyboardInterrupt:
        click.echo(err=True)


class _Follower:
    """Prints one rank's log as it grows, and to standard error what becomes of the run."""

    def __init__(self, run: RunDir, rank: int, attempt: Attempt | None):
        self.run, self.rank = run, rank
        self.attempt: Attempt | None = None
        self.tail: _Tail | None = None
        self.last_look = 0.0  # at the whole run, on the monotonic clock
        self.last_state = ""
        if attempt is not None:
            self._enter(attempt)

    def follow(self) -> None:
        """Until the run's end."""
        while True:
            grew = self._print_new()
            following = self._find_next_attempt()
            if following is not None:
                self._print_new()  # what came between the last look and the next attempt
                self._enter(following)
                continue
            if not grew and time.monotonic() - self.last_look > ASK and self._check_ended():
                self._print_new()
                click.echo(f"=== {self.last_state}", err=True)
                return
            time.sleep(POLL)

    def _enter(self, attempt: Attempt) -> None:
        _announce(attempt, self.rank)
        self.attempt, self.tail = attempt, _Tail(attempt.log_path(self.rank))

    def _print_new(self) -> bool:
        return self.tail is not None and self.tail.print_new()

    def _find_next_attempt(self) -> Attempt | None:
        number = self.attempt.number if self.attempt else 0
        return next((later for later in self.run.attempts() if later.number > number), None)

    def _check_ended(self) -> bool:
        """Whether the run goes on no more. Tells of a run that waits, whose log may stand still for long."""
        row = status.read_status(self.run)
        self.last_look = time.monotonic()
        before, self.last_state = self.last_state, f"{row.name} is {_describe_state(row)}"
        if not row.alive and self._find_next_attempt() is None:
            return True
        if not row.training and self.last_state != before:
            click.echo(f"=== {self.last_state}", err=True)
        return False


class _Tail:
    """A growing file's new bytes, to standard output."""

    def __init__(self, path: Path):
        self.path, self.read = path, 0

    def print_new(self) -> bool:
        """Whether there were any."""
        before = self.read
        try:
            with open(self.path, "rb") as file:
                file.seek(self.read)
                while block := file.read(_BLOCK):
                    sys.stdout.buffer.write(block)
                    self.read += len(block)
        except FileNotFoundError:  # the attempt has begun, and its rank not yet
            return False
        sys.stdout.flush()
        return self.read > before


def _choose_attempt(run: RunDir, number: int | None) -> Attempt | None:
    """Attempt `number`, or the newest; None where none has begun. Raises UserError where there is no such number."""
    attempts = run.attempts()
    if number is None:
        return attempts[-1] if attempts else None
    for attempt in attempts:
        if attempt.number == number:
            return attempt
    existing = f"it has 1 to {attempts[-1].number}" if attempts else "it has begun none yet"
    raise UserError(f"{run.path}: has no attempt {number}; {existing}")


def _announce(attempt: Attempt, rank: int) -> None:
    line = f"=== attempt {attempt.number}"
    allocation = Allocation.read_if_written(attempt.allocation_path)
    if allocation is not None:
        line += f" on {', '.join(allocation.nodes)}: {allocation.reason}"
    click.echo(line, err=True)
    world_size = _read_world_size(attempt)
    if rank >= world_size:
        click.echo(f"=== it has {world_size} ranks, none of them rank {rank}", err=True)


def _explain_missing_log(attempt: Attempt, rank: int) -> str:
    world_size = _read_world_size(attempt)
    if rank >= world_size:
        return f"attempt {attempt.number} has no rank {rank}; its ranks are 0 to {world_size - 1}"
    return (
        f"{attempt.log_path(rank)}: is not written yet; the log of what starts the ranks is {attempt.launcher_log_path}"
    )


def _read_world_size(attempt: Attempt) -> int:
    return AttemptPlan.read(attempt.plan_path).batch_plan.shape.world_size


def _describe_state(row: status.RunStatus) -> str:
    """`stopped, 40/100 steps: SIGTERM`."""
    text = row.state
    if row.steps is not None:
        text += f", {format_steps(row)} steps"
    if row.detail:
        text += f": {row.detail}"
    return text
