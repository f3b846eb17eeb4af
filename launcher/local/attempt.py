"""`--local`: the run's ranks on this machine, started and watched through torch's own launcher.

People's signals stop here and reach every rank as SIGUSR2: torchrun would die of that one and orphan its ranks, and
answer SIGTERM with a traceback of its own. How it ended is read from the attempt's records, not from exit codes.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import psutil

from configs.errors import LockstepError, UserError
from configs.schema import RunConfig
from configs.solve.learning_rate import compute_learning_rate
from launcher.format import format_count, format_rate
from launcher.local.job import LocalJob
from launcher.local.live_log import LiveLog
from launcher.run_lock import name_attempt
from store.checkpoint import checkpoints
from store.dataset.bad_samples import SHOWN
from store.files import open_to_append
from store.run import gpus
from store.run.attempt_plan import AttemptPlan
from store.run.end import End
from store.run.last_words import find_last_words
from store.run.records import FailureReport, read_failures, read_heartbeats
from store.run.run_dir import Attempt, RunDir
from store.run.submission import open_attempt

if TYPE_CHECKING:  # preparing a run imports the backends, and so this
    from launcher.submit.prepare import PreparedRun

POLL = 0.1  # seconds between two looks at the ranks
GRACE = 3  # seconds the other ranks get to report once one has died


@dataclass(frozen=True)
class LocalRuns:
    """Runs that may start here, one after the other."""

    runs: "Sequence[PreparedRun]"
    start: str = "it starts at once"
    note: str | None = None

    def submit(
        self, runs: "Sequence[PreparedRun]", held: Mapping[Path, str], locks: Mapping[Path, int]
    ) -> list[LocalJob]:
        """Train them to their ends, and show it. `held` is empty: nothing waits here. A run's lock goes on to its
        processes, which may outlive this one.

        Raises LockstepError with what a run failed of.
        """
        jobs = []
        for prepared in runs:
            # From the first byte written on, no signal leaves an attempt without its end.
            with SignalCounter() as notices:
                end = start_attempt(prepared, notices, locks[prepared.run.path]).watch()
            state = "CANCELLED" if end.reason == "notice" else "COMPLETED"
            jobs.append(LocalJob(str(prepared.run.path), state, "records"))
        return jobs


def start_attempt(prepared: "PreparedRun", notices: "SignalCounter", lock: int) -> "LocalAttempt":
    """Write the run, open its next attempt, and start the ranks. `lock`: the descriptor of the run's lock."""
    prepared.write()
    attempt = open_attempt(prepared.run, prepared.config, prepared.batch_plan)
    name_attempt(lock, attempt.number)
    live_log = LiveLog(attempt)
    _tell_bad_samples(prepared, live_log)
    ranks = format_count(prepared.batch_plan.shape.world_size, "rank")
    live_log.say(f"{prepared.config.name}: attempt {attempt.number} with {ranks}; logs in {attempt.path / 'logs'}")
    if saved := checkpoints.list_checkpoints(prepared.run):
        live_log.say(_describe_resume(prepared.config, saved[-1].step, prepared.total_steps))
    return LocalAttempt(prepared.run, attempt, notices, lock, live_log)


def _tell_bad_samples(prepared: "PreparedRun", live_log: LiveLog) -> None:
    bad_samples = prepared.dataset.bad_samples
    for bad in bad_samples[:SHOWN]:
        live_log.say(f"skipped {bad.problem}")
    if bad_samples:
        count = f"{format_count(len(bad_samples), 'bad sample')}, {prepared.submission.dataset_size:,} are left"
        live_log.say(f"skipped {count}; all are listed in {prepared.run.bad_samples_path}")


def _describe_resume(config: RunConfig, done: int, total: int) -> str:
    """Where a resume starts, and the learning rate from there: a new length bends its curve."""
    steps = sorted({min(done + 1, total), (done + total) // 2, total})
    rates = ", ".join(f"{format_rate(compute_learning_rate(config, step, total))} at {step:,}" for step in steps)
    return f"resumes after step {done:,} of {total:,}; learning rate {rates}"


class SignalCounter:
    """People's signals, noted while in here: the first asks the ranks to stop, the second ends them at once."""

    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2)

    def __init__(self) -> None:
        self.given: list[str] = []

    def __enter__(self) -> "SignalCounter":
        self._before = {number: signal.signal(number, self._arrived) for number in self.SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _arrived(self, number: int, _: FrameType | None) -> None:
        self.given.append(signal.Signals(number).name)


class LocalAttempt:
    """One attempt's processes on this machine."""

    def __init__(self, run: RunDir, attempt: Attempt, notices: SignalCounter, lock: int, live_log: LiveLog):
        self.attempt, self.notices, self.live_log = attempt, notices, live_log
        self.ranks: dict[psutil.Process, int] = {}  # that lived at the last look, each with its number
        self.started = False  # whether a rank was ever seen
        self.signalled: set[psutil.Process] = set()
        self.first_dead: int | None = None
        count = AttemptPlan.read(attempt.plan_path).batch_plan.shape.world_size
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
        command += ["--monitor-interval=0.2", *_limit_shutdown(version("torch"))]
        command += ["-m", "lockstep", "train", str(run.path), f"--attempt={attempt.number}"]
        environment = os.environ | {
            "PYTHONSAFEPATH": "1",  # a train.py in the working directory is not ours
            "OMP_NUM_THREADS": str(_threads_per_rank(count)),
        }
        if gpus.must_find_gpu(os.environ):
            environment[gpus.GPUS_VARIABLE] = "1"
        with open(open_to_append(attempt.launcher_log_path), "ab") as log, _blocked(signal.SIGUSR2):
            self.torchrun = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
                pass_fds=(lock,),  # torchrun holds the run should this process be killed; the ranks die with torchrun
            )

    def watch(self) -> End:
        """Follow the attempt to its end record, or raise what it failed of."""
        try:
            while self.torchrun.poll() is None:
                self._look()
                self.live_log.show_new()
                time.sleep(POLL)
        finally:
            self._kill()  # nothing of ours outlives this, however we leave
            self.live_log.finish()
        end = self._end()
        if end.reason == "notice":
            notice = self.notices.given[0] if self.notices.given else end.notice  # ranks know only what reached them
            self.live_log.say(f"stopped on {notice} after step {end.step}; the same command resumes it")
        return end

    def _look(self) -> None:
        """Pass notices on, also to ranks that start later, and remember which rank was the first to die silently."""
        alive = self._find_ranks()
        for process, rank in self.ranks.items():
            if process not in alive:
                self._end_group(process, rank)
        self.ranks = alive
        self.started = self.started or bool(alive)
        if len(self.notices.given) > 1:
            self._kill()
        elif self.notices.given:
            for process in alive.keys() - self.signalled:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(signal.SIGUSR2)
                self.signalled.add(process)

    def _find_ranks(self) -> dict[psutil.Process, int]:
        """The ranks that run now, each with its number."""
        alive = {}
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in psutil.Process(self.torchrun.pid).children():
                with contextlib.suppress(psutil.NoSuchProcess, KeyError):  # just gone, or not yet a rank
                    if process.status() != psutil.STATUS_ZOMBIE:
                        alive[process] = int(process.environ()["RANK"])
        return alive

    def _end_group(self, process: psutil.Process, rank: int) -> None:
        """A rank has ended: what it had started ends with it, now, while its number cannot be anybody else's yet."""
        silent = not self.attempt.end_path.exists() and not self.attempt.failure_path(rank).exists()
        if silent and self.first_dead is None:
            self.first_dead = rank
        _kill_group(process)

    def _kill(self) -> None:
        """End torchrun, the ranks, and whatever these have started."""
        processes = set(self.ranks)
        if self.torchrun.poll() is None:
            torchrun = psutil.Process(self.torchrun.pid)
            torchrun.suspend()  # so that it starts no rank meanwhile
            processes |= set(torchrun.children())
            torchrun.kill()
        for process in processes:
            _kill_group(process)
        self.torchrun.wait()

    def _end(self) -> End:
        """The attempt's end record; raises LockstepError with the cause where there is none."""
        if end := End.read_if_written(self.attempt.end_path):
            return end
        if len(self.notices.given) > 1:
            raise LockstepError("stopped at once: asked twice")
        reports = read_failures(self.attempt)
        causes = [report for report in reports if not report.peer_lost]
        if causes:
            raise _failure(causes[0], len(reports) - 1, self.attempt)
        for rank in read_heartbeats(self.attempt):
            log = self.attempt.log_path(rank)
            words = find_last_words(log)
            if words:
                raise LockstepError(f"rank {rank} was aborted: {words}; its last lines are in {log}")
        if self.first_dead is not None:
            raise LockstepError(
                f"rank {self.first_dead} exited without an error report (SIGKILL or out of memory?); "
                f"its last lines are in {self.attempt.log_path(self.first_dead)}"
            )
        problem = "torch's launcher ended before the ranks" if self.started else "the ranks did not start"
        raise LockstepError(f"{problem}; see {self.attempt.launcher_log_path}")


def _failure(report: FailureReport, victims: int, attempt: Attempt) -> LockstepError:
    """The first failure in time, as the rank reported it; the ranks it took with it are victims."""
    if report.exit_code == UserError.exit_code:
        return UserError(report.message)
    if report.stuck is not None:
        return LockstepError(f"{report.message}; every rank's stacks are in {attempt.stacks_path}")
    others = f", and {victims} more followed" if victims else ""
    rank = report.rank
    text = report.traceback or f"{report.message}\n"
    return LockstepError(f"{text}rank {rank} failed first{others}; its log is {attempt.log_path(rank)}")


def _kill_group(leader: psutil.Process) -> None:
    """torchrun gives each rank a process group, which lives for as long as anything that the rank has started, and
    whose number is the rank's. Where another process has that number by now, nothing of ours is left."""
    if psutil.pid_exists(leader.pid) and not leader.is_running():
        return
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader.pid, signal.SIGKILL)


@contextlib.contextmanager
def _blocked(number: signal.Signals) -> Iterator[None]:
    """Processes started in here have `number` blocked: it waits for them to be ready for it."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {number})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})


def _limit_shutdown(torch_version: str) -> list[str]:
    """torchrun's option for GRACE; before 2.12 it has none, and gives the others 30 seconds."""
    major, minor = torch_version.split(".")[:2]
    return [f"--shutdown-timeout={GRACE}"] if (int(major), int(minor)) >= (2, 12) else []


def _threads_per_rank(ranks: int) -> int:
    """An equal share of this machine's cores, unless OMP_NUM_THREADS says otherwise."""
    return int(os.environ.get("OMP_NUM_THREADS") or max(1, len(os.sched_getaffinity(0)) // ranks))
