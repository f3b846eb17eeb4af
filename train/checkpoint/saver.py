"""Saving C(step): copy at the boundary, write behind the training, commit at a later boundary when every rank is done.

The copy needs no pause of its own: masters, moments and averages change only in an update, so a thread copies them
while the next step's passes run, and the update waits for it (`wait_for_copy`). At most one save is in flight.
"""

import os
import shutil
import time
from dataclasses import replace
from pathlib import Path

import torch

from configs.errors import LockstepError
from store.checkpoint import checkpoints, fragment_file
from store.checkpoint.manifest import MANIFEST_NAME, FileEntry, Identity, Manifest
from store.checkpoint.retention import should_save, steps_to_prune
from store.run.run_dir import sync_directory, write_atomic
from train.checkpoint.snapshot import Snapshot
from train.context import RankContext
from train.engines import zero_state as state
from train.engines.ema import Ema
from train.engines.zero import Engine
from train.resilience.progress import WAITING_FOR_OTHERS
from train.resilience.skipped import NonFinite

ROOM = 1.05  # free space asked for, as a multiple of what the checkpoint holds


class Saver:
    """One run's saves on one rank. Every method is called by all ranks together unless it says otherwise."""

    def __init__(self, context: RankContext, engine: Engine, ema: Ema | None, start: int):
        self.run, self.attempt, self.plan = context.run, context.attempt, context.plan
        self.policy, self.world, self.progress = context.config.checkpoint, context.world, context.progress
        self.engine, self.ema = engine, ema
        self.buffers: list[torch.Tensor] = []
        self.in_flight: Snapshot | None = None
        self.owed = False  # a save that came due while another was in flight
        self.last_save = time.monotonic()
        self.newest: int | None = start or None
        self.failures = 0

    def wait_for_copy(self) -> None:
        """This rank alone: the values are about to change."""
        if self.in_flight is not None:
            self.in_flight.copied.wait()

    def after_step(self, step: int, *, force: bool, requested: bool, skipped: bool) -> None:
        """After `step`: commit what is written, begin what is due, or `requested` on rank 0; `force` on all ranks where
        no step follows.

        A step that was skipped is no reason to save: the save waits for one that was not, so that a run that only
        skips is seen not to get further.
        """
        due = self.world.is_main_process and (
            requested or self.owed or should_save(self.policy, step, time.monotonic() - self.last_save)
        )
        busy = self.in_flight is not None and not self.in_flight.done.is_set()
        due, busy = self.world.any_rank([due, busy])
        if self.in_flight is not None and not busy:
            self._commit()
        owed, self.owed = self.owed, False
        if force:
            self._save_now(step)
        elif due and skipped:
            self.owed = True
        elif due and self.in_flight is not None:
            if self.world.is_main_process and not owed:
                print(
                    f"step {self.in_flight.draft.identity.step} is still being written; the next save waits", flush=True
                )
            self.owed = True
        elif due and self._begin(step) and self.policy.mode == "sync":
            self._commit()

    def finish(self) -> None:
        """Wait for the save in flight, if any, and commit it: for a run that ends without a save of its own."""
        if self.in_flight is not None:
            self._commit()

    def _save_now(self, step: int) -> None:
        """Save `step` before going on, a save in flight first. Raises LockstepError where it cannot be done."""
        self.finish()
        if self.newest != step and not (self._begin(step) and self._commit()):
            raise LockstepError(f"the checkpoint of step {step} could not be saved; {self._newest()}")

    def _newest(self) -> str:
        return "none is committed" if self.newest is None else f"the newest is step {self.newest}"

    def _begin(self, step: int) -> bool:
        """Start the copy and the write of C(step), where there is room for it."""
        self.last_save = time.monotonic()
        pieces, sources = self._state()
        size = sum(self.world.gather(sum(4 * piece.length for piece in pieces)))
        folder = checkpoints.temporary_path(self.run, step, self.attempt.number)
        refusal = self.world.broadcast(_make_room(folder, size) if self.world.is_main_process else None)
        if refusal is not None:
            self._fail(folder, refusal)
            return False
        if not self.buffers:
            pinned = self.world.device.type == "cuda"
            self.buffers = [torch.empty(source.shape, pin_memory=pinned) for source in sources]
        path = folder / fragment_file.fragment_file_name(self.world.rank)
        self.in_flight = Snapshot(self._draft(step), path, pieces, sources, self.buffers)
        return True

    def _state(self) -> tuple[list[fragment_file.StoredFragment], list[torch.Tensor]]:
        """What this rank owns: the pieces, and DeepSpeed's own storage of each."""
        engine, owned = self.engine.deepspeed, self.engine.owned
        state.ensure_moments(engine, owned)
        values = {"weights": [f.master for f in owned]}
        values |= {key: [f.moment(engine.basic_optimizer, key) for f in owned] for key in state.MOMENTS}
        if self.ema is not None:
            values["ema"] = self.ema.averages
        pieces = [fragment_file.StoredFragment(kind, f.name, f.offset, f.length) for kind in values for f in owned]
        return pieces, [value for kind in values for value in values[kind]]

    def _draft(self, step: int) -> Manifest:
        """The manifest of C(step) but for its files; taken at the boundary, as the next update moves the counters."""
        engine = self.engine.deepspeed
        applied = state.optimizer_step(engine, self.engine.owned)
        return Manifest(
            identity=Identity(self.run.path.name, step, self.attempt.number, self.plan.nonce, self.engine.layout),
            world_size=self.world.size,
            zero=self.engine.stage,
            kinds=("weights", *state.MOMENTS, *(["ema"] if self.ema else [])),
            optimizer_step=applied,
            skipped_steps=step - applied,
            loss_scaler=state.loss_scaler(engine),
            files=(),
        )

    def _commit(self) -> bool:
        """Wait for every rank's file and make them one visible checkpoint, or none."""
        snapshot, self.in_flight = self.in_flight, None
        assert snapshot is not None
        self.progress.set_activity("writing its part of the checkpoint")
        snapshot.thread.join()
        self.progress.record_save(snapshot.seconds)
        self.progress.set_activity(f"{WAITING_FOR_OTHERS} to write their parts of the checkpoint")
        spoiled = [found for found in self.world.gather(snapshot.spoiled) if found]
        if spoiled:
            if self.world.is_main_process:
                shutil.rmtree(snapshot.path.parent, ignore_errors=True)
            raise NonFinite(f"{spoiled[0]}, so no checkpoint of it is kept; {self._newest()}")
        outcomes = self.world.gather(snapshot.outcome)
        problem = self.world.broadcast(self._publish(snapshot.draft, outcomes) if self.world.is_main_process else None)
        if problem is not None:
            self._fail(snapshot.path.parent, problem)
            return False
        self.newest = snapshot.draft.identity.step
        if self.world.is_main_process:
            print(f"saved step {self.newest}", flush=True)
            self._prune()
        return True

    def _publish(self, draft: Manifest, outcomes: list[FileEntry | str]) -> str | None:
        """Rank 0: manifest, fsync, rename, fsync of the parent; or what stands in the way."""
        files = tuple(outcome for outcome in outcomes if isinstance(outcome, FileEntry))
        problems = [outcome for outcome in outcomes if isinstance(outcome, str)]
        if problems:
            return problems[0]
        identity = draft.identity
        if newer := [attempt.number for attempt in self.run.attempts() if attempt.number > identity.attempt]:
            return f"attempt {newer[-1]} of this run has begun, and attempt {identity.attempt} writes no more"
        folder = checkpoints.temporary_path(self.run, identity.step, identity.attempt)
        try:
            write_atomic(folder / MANIFEST_NAME, replace(draft, files=files).to_text())
            final = checkpoints.committed_path(self.run, identity.step, identity.attempt)
            os.rename(folder, final)
            sync_directory(self.run.checkpoints)
        except OSError as error:
            return f"{folder}: {error.strerror}"
        try:
            checkpoints.record_saved_checkpoint(self.attempt, final)
        except OSError as error:  # the checkpoint stands; its note may lie on another, full file system
            print(f"ALARM: {self.attempt.saved} could not be written: {error.strerror}", flush=True)
        return None

    def _prune(self) -> None:
        """Rank 0, only after a commit: remove what the policy does not keep."""
        there = checkpoints.list_checkpoints(self.run)
        doomed = set(steps_to_prune(self.policy, [checkpoint.step for checkpoint in there]))
        for checkpoint in there:
            if checkpoint.step in doomed:
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
