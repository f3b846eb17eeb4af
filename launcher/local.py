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

import psutil

from configs.attempt_plan import AttemptPlan
from configs.batch import Shape, solve
from configs.end import FAILED, FINISHED, End
from configs.run_dir import Attempt, RunDir
from configs.schema import RunConfig
from launcher.follow import Follower
from launcher.submit import prepare, threads_per_rank

POLL = 0.1  # seconds between two looks at the ranks
GRACE = 3  # seconds the other ranks get to report once one has died


def submit_local(config: RunConfig, ranks: int | None) -> int:
    """Train `config` on this machine with `ranks` ranks (or as many as the config's own shape has per node).

    Answers the exit code of contract 5.
    """
    shape = Shape(1, ranks or solve(config).shape.gpus_per_node)
    run, attempt = prepare(config, shape)
    if attempt is None:
        print(f"{config.name} is trained to its end; its pipeline is {run.pipeline}")
        return FINISHED
    follower = Follower(attempt)
    follower.say(
        f"{config.name}: attempt {attempt.number} with {shape.world_size} ranks; logs in {attempt.path / 'logs'}"
    )
    return LocalJob(run, attempt).watch(follower)


class LocalJob:
    """One attempt's processes on this machine."""

    def __init__(self, run: RunDir, attempt: Attempt):
        self.attempt = attempt
        self.ranks = AttemptPlan.read(attempt).batch_plan.shape.world_size
        self.notices = 0
        self.told: set[int] = set()
        self.first_dead: int | None = None
        self.seen: dict[int, int] = {}  # pid → rank
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={self.ranks}"]
        command += ["--monitor-interval=0.2", f"--shutdown-timeout={GRACE}"]
        command += ["-m", "train", str(run.path), f"--attempt={attempt.number}"]
        environment = os.environ | {
            "PYTHONSAFEPATH": "1",  # a train.py in the working directory is not ours
            "OMP_NUM_THREADS": str(threads_per_rank(self.ranks)),
        }
        with open(attempt.launcher_log, "ab") as log, _blocked(signal.SIGUSR2):
            self.torchrun = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
            )

    def watch(self, follower: Follower) -> int:
        """Follow the attempt to its end and answer the exit code of contract 5."""
        before = {number: signal.signal(number, self._notice) for number in _SIGNALS}
        try:
            while self.torchrun.poll() is None:
                self._look()
                follower.show_new()
                time.sleep(POLL)
        finally:
            self._kill()  # nothing of ours outlives this, however we leave
            for number, handler in before.items():
                signal.signal(number, handler)
        follower.finish()
        return self._verdict(follower)

    def _notice(self, number: int, _: FrameType | None) -> None:
        self.notices += 1

    def _look(self) -> None:
        """Pass notices on, also to ranks that start later, and remember which rank was the first to die."""
        ranks = self._processes()
        for process in ranks:
            if process.pid not in self.seen:
                with contextlib.suppress(psutil.Error):
                    self.seen[process.pid] = int(process.environ()["RANK"])
        alive = {process.pid for process in ranks if process.is_running() and process.status() != psutil.STATUS_ZOMBIE}
        if self.first_dead is None and not self.attempt.end.exists():
            self.first_dead = next((rank for pid, rank in self.seen.items() if pid not in alive), None)
        if self.notices > 1:
            self._kill()
        elif self.notices == 1:
            for pid in alive - self.told:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGUSR2)
                self.told.add(pid)

    def _processes(self) -> list[psutil.Process]:
        with contextlib.suppress(psutil.NoSuchProcess):
            return psutil.Process(self.torchrun.pid).children()
        return []

    def _kill(self) -> None:
        everything = [process for rank in self._processes() for process in (rank, *rank.children(recursive=True))]
        if self.torchrun.poll() is None:
            self.torchrun.kill()
        for process in everything:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.torchrun.wait()

    def _verdict(self, follower: Follower) -> int:
        if end := End.read(self.attempt):
            if end.reason == "notice":
                follower.say(f"stopped on {end.notice} after step {end.step}; the same command goes on")
            return end.exit_code
        if self.notices > 1:
            follower.say("stopped at once: asked twice")
            return FAILED
        reports = self.attempt.failures()
        causes = [report for report in reports if not report["peer_lost"]]
        if causes:
            return _blame(causes[0], len(reports) - 1, self.attempt, follower)
        if self.first_dead is not None:
            follower.say(
                f"rank {self.first_dead} died without a word: killed from outside, or out of memory; "
                f"its last lines are in {self.attempt.log(self.first_dead)}"
            )
            return FAILED
        follower.say(f"the ranks did not start; see {self.attempt.launcher_log}")
        return FAILED


def _blame(report: dict[str, object], victims: int, attempt: Attempt, follower: Follower) -> int:
    """Show the first failure in time; the ranks it took with it are victims."""
    if report["traceback"]:
        rank = int(str(report["rank"]))
        others = f", and {victims} more followed" if victims else ""
        follower.say(f"{report['traceback']}\nrank {rank} failed first{others}; its log is {attempt.log(rank)}")
    else:
        follower.say(str(report["message"]))
    return int(str(report["exit_code"]))


_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2)


@contextlib.contextmanager
def _blocked(number: signal.Signals) -> Iterator[None]:
    """Processes started in here have `number` blocked: it waits for them to be ready for it."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {number})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
