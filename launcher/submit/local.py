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
from collections.abc import Iterator
from types import FrameType
from typing import Any

import psutil

from configs.errors import LockstepError, UserError
from configs.schema import RunConfig
from configs.solve.batch import Shape, solve_batch
from configs.solve.learning_rate import compute_learning_rate
from launcher.format import format_count, format_rate
from launcher.run_lock import hold_run
from launcher.submit.live_log import LiveLog
from launcher.submit.prepare import PreparedRun, is_finished, prepare_run, threads_per_rank
from slurm.job.record import find_active_job
from slurm.query.queue import describe_job
from store.checkpoint import checkpoints
from store.run import gpus
from store.run.attempt_plan import AttemptPlan
from store.run.end import FINISHED, End
from store.run.run_dir import Attempt, RunDir, open_to_append
from store.run.submission import open_attempt

POLL = 0.1  # seconds between two looks at the ranks
GRACE = 3  # seconds the other ranks get to report once one has died


def submit_local(config: RunConfig, ranks: int | None) -> int:
    """Train `config` on this machine with `ranks` ranks (or as many as the config's own shape has per node).

    Answers the exit code of contract 5, or raises what the run failed of.
    """
    shape = Shape(1, ranks or solve_batch(config).shape.gpus_per_node)
    ready = prepare_run(config, shape)
    if _is_done(ready):
        return FINISHED
    # from the first byte written on, no signal leaves an attempt without its end
    with SignalCounter() as notices, hold_run(ready.run) as lock:
        if _is_done(ready):  # once more: another submit may have been quicker
            return FINISHED
        ready.write()
        attempt = open_attempt(ready.run, config, ready.batch_plan)
        follower = LiveLog(attempt)
        for problem in ready.problems:
            follower.say(f"skipped {problem}")
        if ready.problems:
            follower.say(f"skipped {len(ready.problems)} bad samples, {ready.submission.dataset_size} are left")
        where = f"{format_count(shape.world_size, 'rank')}; logs in {attempt.path / 'logs'}"
        follower.say(f"{config.name}: attempt {attempt.number} with {where}")
        if there := checkpoints.list_checkpoints(ready.run):
            follower.say(_goes_on(config, there[-1].step, ready.total_steps))
        return LocalAttempt(ready.run, attempt, notices, lock).watch(follower)


def _is_done(ready: PreparedRun) -> bool:
    """Whether there is nothing left to train, which is said. Raises UserError where the run is a job's, LockstepError
    where nobody can tell whether it is."""
    if is_finished(ready):
        print(f"{ready.config.name} is trained to its end; its pipeline is {ready.run.pipeline}")
        return True
    job = find_active_job(ready.run)
    if job is not None:
        raise UserError(
            f"{ready.run.path}: is job {job.id} ({describe_job(job)}); cancel it first: lockstep cancel RUN"
        )
    return False


def _goes_on(config: RunConfig, done: int, total: int) -> str:
    """Where a resume starts, and the learning rate from there: a new length bends its curve."""
    steps = sorted({min(done + 1, total), (done + total) // 2, total})
    rates = ", ".join(f"{format_rate(compute_learning_rate(config, step, total))} at {step:,}" for step in steps)
    return f"goes on after step {done:,} of {total:,}; learning rate {rates}"


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

    def __init__(self, run: RunDir, attempt: Attempt, notices: SignalCounter, lock: int):
        self.attempt, self.notices = attempt, notices
        ranks = AttemptPlan.read(attempt).batch_plan.shape.world_size
        self.seen: dict[int, int] = {}  # process id → rank
        self.told: set[int] = set()
        self.first_dead: int | None = None
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
        command += ["--monitor-interval=0.2", f"--shutdown-timeout={GRACE}"]
        command += ["-m", "lockstep", "train", str(run.path), f"--attempt={attempt.number}"]
        environment = os.environ | {
            "PYTHONSAFEPATH": "1",  # a train.py in the working directory is not ours
            "OMP_NUM_THREADS": str(threads_per_rank(ranks)),
        }
        if gpus.must_find_gpu(os.environ):
            environment[gpus.GPUS_VARIABLE] = "1"
        with open(open_to_append(attempt.launcher_log), "ab") as log, _blocked(signal.SIGUSR2):
            self.torchrun = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
                pass_fds=(lock,),  # torchrun holds the run should this process be killed; the ranks die with torchrun
            )

    def watch(self, follower: LiveLog) -> int:
        """Follow the attempt to its end and answer the exit code of contract 5, or raise what it failed of."""
        try:
            while self.torchrun.poll() is None:
                self._look()
                follower.show_new()
                time.sleep(POLL)
        finally:
            self._kill()  # nothing of ours outlives this, however we leave
            follower.finish()
        end = self._end()
        if end.reason == "notice":
            asked = self.notices.given[0] if self.notices.given else end.notice  # ranks know only what reached them
            follower.say(f"stopped on {asked} after step {end.step}; the same command goes on")
        return end.exit_code

    def _look(self) -> None:
        """Pass notices on, also to ranks that start later, and remember which rank was the first to die silently."""
        alive = self._alive()
        self.seen |= alive
        if self.first_dead is None and not self.attempt.end.exists():
            gone = (rank for pid, rank in self.seen.items() if pid not in alive)
            self.first_dead = next((rank for rank in gone if not self.attempt.failure(rank).exists()), None)
        if len(self.notices.given) > 1:
            self._kill()
        elif self.notices.given:
            for pid in alive.keys() - self.told:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGUSR2)
                self.told.add(pid)

    def _alive(self) -> dict[int, int]:
        """The ranks that run now: process id → rank."""
        alive = {}
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in psutil.Process(self.torchrun.pid).children():
                with contextlib.suppress(psutil.NoSuchProcess, KeyError):  # just gone, or not yet a rank
                    if process.status() != psutil.STATUS_ZOMBIE:
                        alive[process.pid] = int(process.environ()["RANK"])
        return alive

    def _kill(self) -> None:
        """End torchrun, the ranks, and whatever these have started: torchrun gives each rank a process group."""
        groups = set(self.seen)
        if self.torchrun.poll() is None:
            torchrun = psutil.Process(self.torchrun.pid)
            torchrun.suspend()  # so that it starts no rank meanwhile
            groups |= {rank.pid for rank in torchrun.children()}
            torchrun.kill()
        for group in groups:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)
        self.torchrun.wait()

    def _end(self) -> End:
        """The attempt's end record; raises LockstepError with the cause where there is none."""
        if end := End.read(self.attempt):
            return end
        if len(self.notices.given) > 1:
            raise LockstepError("stopped at once: asked twice")
        reports = self.attempt.failures()
        causes = [report for report in reports if not report["peer_lost"]]
        if causes:
            raise _failure(causes[0], len(reports) - 1, self.attempt)
        if self.first_dead is not None:
            raise LockstepError(
                f"rank {self.first_dead} died without a word: killed from outside, or out of memory; "
                f"its last lines are in {self.attempt.log(self.first_dead)}"
            )
        what = "torch's launcher ended before the ranks" if self.seen else "the ranks did not start"
        raise LockstepError(f"{what}; see {self.attempt.launcher_log}")


def _failure(report: dict[str, Any], victims: int, attempt: Attempt) -> LockstepError:
    """The first failure in time, as the rank reported it; the ranks it took with it are victims."""
    if report["exit_code"] == UserError.exit_code:
        return UserError(report["message"])
    others = f", and {victims} more followed" if victims else ""
    rank = report["rank"]
    what = report["traceback"] or f"{report['message']}\n"
    return LockstepError(f"{what}rank {rank} failed first{others}; its log is {attempt.log(rank)}")


@contextlib.contextmanager
def _blocked(number: signal.Signals) -> Iterator[None]:
    """Processes started in here have `number` blocked: it waits for them to be ready for it."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {number})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
