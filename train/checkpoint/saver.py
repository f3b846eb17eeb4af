"""Saving C(step): copy at the boundary, write behind the training, commit behind it when every rank has written.

The copy needs no pause of its own: weights, optimizer states and averages change only in an update, so a thread copies
them while the next step's passes run, and the update waits for it (`wait_for_copy`). The ranks tell each other at step
boundaries how far they are; at most one save is in flight, until rank 0 has committed it and removed old ones.
"""

import shutil
import time
from pathlib import Path

from configs.errors import LockstepError
from configs.solve.engine import choose_engine
from store.checkpoint import checkpoints
from store.checkpoint.checkpoints import Checkpoint
from store.checkpoint.fragment_file import fragment_file_name
from store.checkpoint.manifest import Identity, Manifest
from store.checkpoint.retention import should_save
from train.checkpoint.commit import Commit
from train.checkpoint.rank_state import RankState
from train.checkpoint.replicas import check_replicas
from train.checkpoint.snapshot import Snapshot
from train.context import RankContext
from train.engines.base import Engine
from train.engines.ema import Ema
from train.progress import WAITING_FOR_OTHERS
from train.resilience.skipped import NonFinite

ROOM = 1.05  # free space asked for, as a multiple of what the checkpoint holds


class Saver:
    """One run's saves on one rank. Every method is called by all ranks together unless it says otherwise.

    `start` is the checkpoint that the run was resumed from, None for the base model.
    """

    def __init__(self, context: RankContext, engine: Engine, ema: Ema | None, start: Checkpoint | None):
        self.context, self.engine = context, engine
        self.policy = context.config.checkpoint
        self.world, self.progress = context.world, context.progress
        self.newest = start  # the same on every rank: what was committed last, or else resumed from
        self.state = RankState(engine, ema, engine.replicas() if self.world.size > 1 else [])
        self.size = sum(self.world.gather(self.state.size))  # bytes of a checkpoint
        self.in_flight: Snapshot | None = None
        self.is_committing = False  # the save in flight: all its files are written
        self.commit: Commit | None = None  # rank 0's, meanwhile
        self.save_pending = False  # a save came due that could not begin yet
        self.last_save = time.monotonic()
        self.failures = 0

    def wait_for_copy(self) -> None:
        """This rank alone: the values are about to change."""
        if self.in_flight is not None:
            self.in_flight.copied.wait()

    def after_step(self, step: int, *, force: bool, requested: bool, skipped: bool) -> None:
        """After `step`: commit what is written, and begin what is due or what a person requested on rank 0.

        `force` is for the last step that is made: it is saved before this returns, or LockstepError is raised.
        `skipped` says that `step` updated nothing. `force` and `skipped` must be the same on every rank.
        """
        if force:
            self._save_now(step)
            return
        # Only rank 0 knows of requests and its clock decides; the slowest rank decides when a save is written.
        due = self.world.is_main_process and (
            requested or self.save_pending or should_save(self.policy, step, time.monotonic() - self.last_save)
        )
        due, busy = self.world.any_rank([due, self._is_busy()])
        if self.in_flight is not None and not busy:
            self._advance()
        was_pending, self.save_pending = self.save_pending, False
        if not due:
            return
        if skipped:
            # No reason to save: nothing was gained. A run that only skips must be seen not to get further.
            self.save_pending = True
        elif self.in_flight is not None:
            # Two at once would need twice the buffers. The state that is saved later is that of a later step.
            self.save_pending = True
            if self.world.is_main_process and not was_pending:
                print(
                    f"step {self.in_flight.manifest.identity.step} is still being written; the next save waits",
                    flush=True,
                )
        elif self._begin(step) and self.policy.mode == "sync":
            self.finish()

    @property
    def newest_name(self) -> str | None:
        """Folder name of the newest checkpoint; None where the run has none. This rank alone."""
        return None if self.newest is None else self.newest.path.name

    def finish(self) -> None:
        """Wait for the save in flight, if any, and commit it: for a run that ends without a save of its own."""
        while self.in_flight is not None:
            self._advance()

    def close(self) -> None:
        """Give the room of the copies back. This rank alone, with no save in flight."""
        self.state.close()

    def _is_busy(self) -> bool:
        """Whether this rank, beside its training, is still at the stage that the save in flight is in."""
        if self.commit is not None:
            return not self.commit.done.is_set()
        return self.in_flight is not None and not self.in_flight.done.is_set()

    def _save_now(self, step: int) -> None:
        """Save `step` before going on, a save in flight first. Raises LockstepError where it cannot be done."""
        self.finish()
        self.save_pending = False
        if self.newest is not None and self.newest.step == step:
            return
        if self._begin(step):
            self.finish()
        if self.newest is None or self.newest.step != step:
            raise LockstepError(f"the checkpoint of step {step} could not be saved; {self._describe_newest()}")

    def _describe_newest(self) -> str:
        return "none is committed" if self.newest is None else f"the newest is step {self.newest.step}"

    def _begin(self, step: int) -> bool:
        """Start the copy and the write of C(step), where there is room for it."""
        self.last_save = time.monotonic()
        folder = checkpoints.temporary_path(self.context.run, step, self.context.attempt.number)
        refusal = _make_room(folder, self.size) if self.world.is_main_process else None
        refusal = self.world.broadcast(refusal)
        if refusal is not None:
            self._fail(refusal)
            return False
        path = folder / fragment_file_name(self.world.rank)
        self.in_flight = Snapshot(self._manifest_without_files(step), path, self.state)
        return True

    def _manifest_without_files(self, step: int) -> Manifest:
        """The manifest of C(step) but for its files; made at the boundary, as the next update moves the counters."""
        context, config = self.context, self.context.config
        number, nonce = context.attempt.number, context.plan.nonce
        assert config.zero != "auto", "the attempt's plan settles it"
        return Manifest(
            identity=Identity(context.run.path.name, step, number, nonce, self.engine.layout),
            world_size=self.world.size,
            engine=choose_engine(config),
            zero=None if config.engine == "fsdp2" else config.zero,
            kinds=self.state.kinds,
            layouts=self.state.layouts,
            files=(),
            **self.engine.counters(step),
        )

    def _advance(self) -> None:
        """Bring the save in flight one stage further, waiting where it is not that far: from the ranks' files to the
        commit, or from there to its end."""
        assert self.in_flight is not None
        if self.is_committing:
            self._conclude(self.in_flight)
        else:
            self._start_commit(self.in_flight)

    def _start_commit(self, snapshot: Snapshot) -> None:
        """Wait for every rank's file; then rank 0's thread makes them one visible checkpoint, or none."""
        self.progress.set_activity("writing its part of the checkpoint")
        snapshot.thread.join()
        self.progress.record_save(snapshot.seconds)
        self.progress.set_activity(f"{WAITING_FOR_OTHERS} to write their parts of the checkpoint")
        spoiled, replicas, outcomes = zip(
            *self.world.gather((snapshot.spoiled, snapshot.replicas, snapshot.outcome)), strict=True
        )
        step = snapshot.manifest.identity.step
        try:
            problems = [problem for problem in spoiled if problem is not None]
            if problems:
                raise NonFinite(f"{problems[0]}, so no checkpoint of it is kept; {self._describe_newest()}")
            check_replicas(self.world, replicas, step)
        except LockstepError:
            self.in_flight = None
            if self.world.is_main_process:
                shutil.rmtree(snapshot.path.parent, ignore_errors=True)
            raise
        self.is_committing = True
        if self.world.is_main_process:
            self.commit = Commit(self.context, snapshot.manifest, outcomes)

    def _conclude(self, snapshot: Snapshot) -> None:
        """Wait for rank 0's commit and learn from it whether there is a checkpoint now."""
        self.progress.set_activity(f"{WAITING_FOR_OTHERS} to commit the checkpoint")
        problem = None
        if self.commit is not None:
            self.progress.set_activity("committing the checkpoint")
            self.commit.thread.join()
            if self.commit.error is not None:
                raise self.commit.error
            problem = self.commit.problem
        problem = self.world.broadcast(problem)
        self.in_flight, self.commit, self.is_committing = None, None, False
        if problem is not None:
            self._fail(problem)
            return
        step, number = snapshot.manifest.identity.step, self.context.attempt.number
        self.newest = Checkpoint(checkpoints.committed_path(self.context.run, step, number), step, number)

    def _fail(self, problem: str) -> None:
        """A save that cannot be had costs itself only: say so loudly, and train on."""
        self.failures += 1
        if self.world.is_main_process:
            print(f"ALARM: a checkpoint was not saved: {problem}", flush=True)


def _make_room(folder: Path, size: int) -> str | None:
    """Make the folder of a save, or say why not."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder.parent).free
        if free < size * ROOM:
            return f"{size / 2**30:.3f} GiB are needed in {folder.parent}, and {free / 2**30:.3f} GiB are free"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
    except OSError as error:
        return f"{folder}: {error.strerror}"
    return None
