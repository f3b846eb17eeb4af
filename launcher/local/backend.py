"""This machine as one who starts runs: what is under way here holds the run's lock, or gives signs of life."""

import contextlib
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from configs.errors import LockstepError
from configs.optimizers import check_package
from configs.schema import RunConfig
from configs.solve.batch import BatchPlan, Shape
from configs.solve.hardware import GIB, Hardware
from launcher.local.job import LocalJob
from launcher.run_lock import is_run_held, read_trained_attempt
from store.run import gpus
from store.run.liveness import find_training_attempt
from store.run.nvidia_smi import find_smallest, query_gpus
from store.run.records import read_heartbeats
from store.run.run_dir import Attempt, RunDir
from store.run.submission import plan_batch

if TYPE_CHECKING:  # preparing a run needs much that looking at one does not
    from launcher.local.attempt import LocalRuns
    from launcher.submit.prepare import PreparedRun

CANCELLING = 30.0  # seconds that the ranks may take to end once they are killed
_POLL = 0.1


class LocalBackend:
    """Starts ranks at once and stays with them; nothing waits in a queue, and nothing starts again by itself."""

    name = "local"

    def __init__(self, ranks: int | None = None):
        """With `ranks` ranks, or as many as the config's own shape has per node and this machine has GPUs for."""
        self.ranks = ranks

    def check_config(self, config: RunConfig) -> None:
        """What else is wrong shows when the run is prepared."""
        check_package(config)

    def plan_batch(self, run: RunDir, config: RunConfig) -> BatchPlan:
        if self.ranks:
            return plan_batch(run, config, Shape(1, self.ranks))
        batch_plan = plan_batch(run, config)
        here = Shape(1, _fit_gpus(batch_plan.shape.gpus_per_node))
        return batch_plan if batch_plan.shape == here else plan_batch(run, config, here)

    def find_hardware(self, config: RunConfig) -> Hardware:
        """This machine's, whatever the config's cluster has."""
        found = [] if gpus.are_gpus_hidden(os.environ) else query_gpus()
        memory, capability = find_smallest(found)
        ranks = self.ranks or _fit_gpus(config.cluster.gpus_per_node)
        return Hardware(
            gpus=bool(found) or gpus.must_find_gpu(os.environ),
            gpu_memory=memory,
            compute_capability=capability,
            host_memory=round(psutil.virtual_memory().total / GIB, 1),
            cpus_per_rank=max(1, len(os.sched_getaffinity(0)) // ranks),
        )

    def check_runs(self, runs: "Sequence[PreparedRun]") -> "list[LocalRuns]":
        from launcher.local.attempt import LocalRuns

        return [LocalRuns([prepared]) for prepared in runs]

    def read_record(self, run: RunDir) -> None:
        """Nothing is noted down but what the attempts say themselves."""
        return None

    def query_jobs(self, ids: Sequence[str]) -> dict[str, LocalJob]:
        jobs = {}
        for folder in ids:
            with contextlib.suppress(LockstepError):  # a damaged run has no answer, and hides no other run's
                jobs[folder] = _look(RunDir(Path(folder)))
        return jobs

    def find_active_job(self, run: RunDir) -> LocalJob | None:
        job = _look(run)
        return job if job.alive else None

    def cancel_job(self, job: str) -> None:
        """As two Ctrl-C's do: its launcher kills the ranks. One whose ranks have ended is only waited for."""
        run = RunDir(Path(job))
        attempts = run.attempts()
        if attempts and not attempts[-1].end_path.is_file():
            for process in _find_lock_holders(run):
                with contextlib.suppress(psutil.NoSuchProcess):
                    for number in (signal.SIGTERM, signal.SIGINT):  # two of one kind may arrive as one
                        process.send_signal(number)
        deadline = time.monotonic() + CANCELLING
        while (now := _look(run)).alive:
            if time.monotonic() > deadline:
                raise LockstepError(f"{job}: still runs on {now.nodes}; run lockstep cancel there")
            time.sleep(_POLL)

    def decide_next(self, run: RunDir, through: Attempt | None = None) -> None:
        return None


def _fit_gpus(per_node: int) -> int:
    """Of the ranks that a node of the config's has, as many as there are GPUs here for and share its part of the batch
    equally; all of them on CPUs."""
    visible = gpus.count_visible_gpus(os.environ)
    if visible == 0 or per_node <= visible:
        return per_node
    return max(fewer for fewer in range(1, visible + 1) if per_node % fewer == 0)


def _look(run: RunDir) -> LocalJob:
    """The newest attempt, where it was started without SLURM, has not ended, and is not left to its fate: the lock dies
    with the processes that hold it. Where this machine cannot tell whether it is held, the ranks' signs of life do."""
    newest = run.attempts()[-1:]
    if not newest or newest[0].allocation_path.is_file() or newest[0].end_path.is_file():
        return LocalJob(str(run.path), "UNKNOWN", "lock")
    held = is_run_held(run)
    if held and read_trained_attempt(run) == newest[0].number:  # not a submit or a prune, which take the lock, too
        return LocalJob(str(run.path), "RUNNING", "lock", nodes="this machine")
    attempt = find_training_attempt(run) if held is not False else None
    if attempt is not None:
        hosts = sorted({beat.host for beat in read_heartbeats(attempt).values()})
        return LocalJob(str(run.path), "RUNNING", "heartbeat", nodes=", ".join(hosts))
    return LocalJob(str(run.path), "UNKNOWN", "lock")


def _find_lock_holders(run: RunDir) -> list[psutil.Process]:
    """The processes here that have the run's lock open: the launcher, or torch's launcher where it outlives ours. Of a
    process and its child only the first: it ends the other."""
    lock = str(run.lock_path.resolve())
    holders = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.pid != psutil.Process().pid and lock in (file.path for file in process.open_files()):
                holders.append(process)
    pids = {process.pid for process in holders}
    return [process for process in holders if process.ppid() not in pids]
