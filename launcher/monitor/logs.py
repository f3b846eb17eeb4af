"""`lockstep logs`: what one rank says, and with `follow` what it goes on saying, from attempt to attempt."""

import json
import sys
import time
from pathlib import Path

import click

from configs.errors import UserError
from launcher.monitor import status
from launcher.monitor.status_text import format_steps
from store.run.attempt_plan import AttemptPlan
from store.run.run_dir import Attempt, RunDir

POLL = 0.2  # seconds between two looks at the log
ASK = 5.0  # seconds between two looks at the whole run, which ask SLURM, and only while the log stands still
_BLOCK = 1 << 20


def show_log(run: RunDir, rank: int, number: int | None) -> None:
    """The whole log, from the newest attempt or attempt `number`."""
    attempt = _chosen(run, number)
    if attempt is None:
        row = status.read_status(run)
        raise UserError(f"{run.path}: has begun no attempt yet; it is {_in_words(row)}")
    log = attempt.log(rank)
    if not log.is_file():
        raise UserError(_no_log(attempt, rank))
    _Tail(log).print_new()


def follow_log(run: RunDir, rank: int, number: int | None) -> None:
    """The same, and all that is added, over every later attempt until the run's end. Ctrl-C leaves."""
    try:
        _follow(run, rank, number)
    except KeyboardInterrupt:
        click.echo(err=True)


def _follow(run: RunDir, rank: int, number: int | None) -> None:
    attempt = _chosen(run, number)
    tail = _Tail(attempt.log(rank)) if attempt else None
    if attempt is not None:
        _announce(attempt, rank)
    said, asked = "", 0.0
    while True:
        grew = tail is not None and tail.print_new()
        if (following := _after(run, attempt)) is not None:
            if tail is not None:
                tail.print_new()  # what came between the last look and the next attempt
            _announce(following, rank)
            attempt, tail = following, _Tail(following.log(rank))
            continue
        if not grew and time.monotonic() - asked > ASK:
            row, asked = status.read_status(run), time.monotonic()
            if not row.alive and _after(run, attempt) is None:
                if tail is not None:
                    tail.print_new()
                click.echo(f"=== {row.name} is {_in_words(row)}", err=True)
                return
            if not row.training and (now := f"=== {row.name} is {_in_words(row)}") != said:
                click.echo(now, err=True)
                said = now
        time.sleep(POLL)


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


def _chosen(run: RunDir, number: int | None) -> Attempt | None:
    attempts = run.attempts()
    if number is None:
        return attempts[-1] if attempts else None
    for attempt in attempts:
        if attempt.number == number:
            return attempt
    there = f"it has 1 to {attempts[-1].number}" if attempts else "it has begun none yet"
    raise UserError(f"{run.path}: has no attempt {number}; {there}")


def _after(run: RunDir, attempt: Attempt | None) -> Attempt | None:
    """The attempt that came after `attempt`, if any has begun."""
    number = attempt.number if attempt else 0
    return next((later for later in run.attempts() if later.number > number), None)


def _announce(attempt: Attempt, rank: int) -> None:
    because, ranks = "", AttemptPlan.read(attempt).batch_plan.shape.world_size
    if attempt.nodes.is_file():
        on = json.loads(attempt.nodes.read_text())
        because = f" on {', '.join(on['nodes'])}: {on['because']}"
    click.echo(f"=== attempt {attempt.number}{because}", err=True)
    if rank >= ranks:
        click.echo(f"=== it has {ranks} ranks, none of them rank {rank}", err=True)


def _no_log(attempt: Attempt, rank: int) -> str:
    ranks = AttemptPlan.read(attempt).batch_plan.shape.world_size
    if rank >= ranks:
        return f"attempt {attempt.number} has no rank {rank}; its ranks are 0 to {ranks - 1}"
    return f"{attempt.log(rank)}: is not written yet; what started the ranks says is in {attempt.launcher_log}"


def _in_words(row: status.RunStatus) -> str:
    """What has become of the run, in one line."""
    where = f", {format_steps(row)} steps" if row.steps is not None else ""
    return f"{row.state}{where}{f': {row.detail}' if row.detail else ''}"
