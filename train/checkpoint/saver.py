"""Saving C(step): copy at the boundary, write behind the training, commit at a later boundary when every rank is done.

The copy needs no pause of its own: weights, optimizer states and averages change only in an update, so a thread copies
them while the next step's passes run, and the update waits for it (`wait_for_copy`). At most one save is in flight.
"""

import os
import shutil
import time
from dataclasses import replace
from pathlib import Path

import torch

from configs.errors import LockstepError
from store.checkpoint import checkpoints, fragment_file
from store.checkpoint.checkpoints import Checkpoint
from store.checkpoint.manifest import MANIFEST_NAME, FileEntry, Identity, Manifest
from store.checkpoint.retention import should_save, steps_to_prune
from store.run.records import SavedCheckpoint
from store.run.run_dir import sync_directory, write_atomic
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
        self.policy = context.config.checkpoint
        self.run, self.attempt, self.plan = context.run, context.attempt, context.plan
        self.world, self.progress = context.world, context.progress
        assert context.config.zero != "auto", "the attempt's plan settles it"
        self.zero = context.config.zero
        self.engine, self.ema = engine, ema
        self.newest = start  # the same on every rank: what was committed last, or else resumed from
        self.buffers: list[torch.Tensor] = []
        self.in_flight: Snapshot | None = None
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
        writing = self.in_flight is not None and not self.in_flight.done.is_set()
        due, writing = self.world.any_rank([due, writing])
        if self.in_flight is not None and not writing:
            self._commit()
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
            self._commit()

    @property
    def newest_name(self) -> str | None:
        """Folder name of the newest checkpoint; None where the run has none. This rank alone."""
        return None if self.newest is None else self.newest.path.name

    def finish(self) -> None:
        """Wait for the save in flight, if any, and commit it: for a run that ends without a save of its own."""
        if self.in_flight is not None:
            self._commit()

    def _save_now(self, step: int) -> None:
        """Save `step` before going on, a save in flight first. Raises LockstepError where it cannot be done."""
        self.finish()
        self.save_pending = False
        if self.newest is not None and self.newest.step == step:
            return
        if not (self._begin(step) and self._commit()):
            raise LockstepError(f"the checkpoint of step {step} could not be saved; {self._describe_newest()}")

    def _describe_newest(self) -> str:
        return "none is committed" if self.newest is None else f"the newest is step {self.newest.step}"

    def _begin(self, step: int) -> bool:
        """Start the copy and the write of C(step), where there is room for it."""
        self.last_save = time.monotonic()
        pieces, sources = self._state()
        size = sum(self.world.gather(sum(4 * piece.length for piece in pieces)))
        folder = checkpoints.temporary_path(self.run, step, self.attempt.number)
        refusal = _make_room(folder, size) if self.world.is_main_process else None
        refusal = self.world.broadcast(refusal)
        if refusal is not None:
            self._fail(folder, refusal)
            return False
        if not self.buffers:
            pinned = self.world.device.type == "cuda"
            self.buffers = [torch.empty(source.shape, pin_memory=pinned) for source in sources]
        path = folder / fragment_file.fragment_file_name(self.world.rank)
        self.in_flight = Snapshot(self._manifest_without_files(step), path, pieces, sources, self.buffers)
        return True

    def _state(self) -> tuple[list[fragment_file.StoredFragment], list[torch.Tensor]]:
        """What this rank owns: the names of its pieces, and the engine's own storage of each."""
        owned = self.engine.owned
        values = {key: [self.engine.tensor(fragment, key) for fragment in owned] for key in self.engine.state_keys}
        if self.ema is not None:
            values["ema"] = self.ema.averages
        pieces = [
            fragment_file.StoredFragment(kind, fragment.name, fragment.offset, fragment.length)
            for kind in values
            for fragment in owned
        ]
        return pieces, [tensor for tensors in values.values() for tensor in tensors]

    def _manifest_without_files(self, step: int) -> Manifest:
        """The manifest of C(step) but for its files; made at the boundary, as the next update moves the counters."""
        return Manifest(
            identity=Identity(self.run.path.name, step, self.attempt.number, self.plan.nonce, self.engine.layout),
            world_size=self.world.size,
            zero=self.zero,
            kinds=(*self.engine.state_keys, *(["ema"] if self.ema else [])),
            files=(),
            **self.engine.counters(step),
        )

    def _commit(self) -> bool:
        """Wait for every rank's file and make them one visible checkpoint, or none."""
        snapshot, self.in_flight = self.in_flight, None
        assert snapshot is not None
        self.progress.set_activity("writing its part of the checkpoint")
        snapshot.thread.join()
        self.progress.record_save(snapshot.seconds)
        self.progress.set_activity(f"{WAITING_FOR_OTHERS} to write their parts of the checkpoint")
        spoiled = [value for value in self.world.gather(snapshot.spoiled) if value is not None]
        if spoiled:
            if self.world.is_main_process:
                shutil.rmtree(snapshot.path.parent, ignore_errors=True)
            raise NonFinite(f"{spoiled[0]}, so no checkpoint of it is kept; {self._describe_newest()}")
        outcomes = self.world.gather(snapshot.outcome)
        problem = self.world.broadcast(
            self._publish(snapshot.manifest, outcomes) if self.world.is_main_process else None
        )
        if problem is not None:
            self._fail(snapshot.path.parent, problem)
            return False
        step = snapshot.manifest.identity.step
        path = checkpoints.committed_path(self.run, step, self.attempt.number)
        self.newest = Checkpoint(path, step, self.attempt.number)
        if self.world.is_main_process:
            print(f"saved step {step}", flush=True)
            self._prune()
        return True

    def _publish(self, manifest: Manifest, outcomes: list[FileEntry | str]) -> str | None:
        """Rank 0: manifest, fsync, rename, fsync of the parent; or what stands in the way."""
        files = tuple(outcome for outcome in outcomes if isinstance(outcome, FileEntry))
        problems = [outcome for outcome in outcomes if isinstance(outcome, str)]
        if problems:
            return problems[0]
        identity = manifest.identity
        if newer := [attempt.number for attempt in self.run.attempts() if attempt.number > identity.attempt]:
            return f"attempt {newer[-1]} of this run has begun, and attempt {identity.attempt} writes no more"
        folder = checkpoints.temporary_path(self.run, identity.step, identity.attempt)
        try:
            write_atomic(folder / MANIFEST_NAME, replace(manifest, files=files).to_text())
            final = checkpoints.committed_path(self.run, identity.step, identity.attempt)
            os.rename(folder, final)
            sync_directory(self.run.checkpoints_path)
        except OSError as error:
            return f"{folder}: {error.strerror}"
        try:
            SavedCheckpoint(final.name).write(self.attempt.saved_path)
        except OSError as error:  # the checkpoint stands; its note may lie on another, full file system
            print(f"ALARM: {self.attempt.saved_path} could not be written: {error.strerror}", flush=True)
        return None

    def _prune(self) -> None:
        """Rank 0, only after a commit: remove what the policy does not keep."""
        committed = checkpoints.list_checkpoints(self.run)
        superfluous = steps_to_prune(self.policy, [checkpoint.step for checkpoint in committed])
        for checkpoint in committed:
            if checkpoint.step in superfluous:
                try:
                    checkpoints.remove_checkpoint(checkpoint)
                except OSError as error:  # the new one stands; the old one only takes room
                    print(f"ALARM: {checkpoint.path} could not be removed: {error.strerror}", flush=True)

    def _fail(self, folder: Path, problem: str) -> None:
        """A save that cannot be had costs itself only: say so loudly, clean up, train on."""
        self.failures += 1
        if self.world.is_main_process:
            print(f"ALARM: a checkpoint was not saved: {problem}", flush=True)
            shutil.rmtree(folder, ignore_errors=True)


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
