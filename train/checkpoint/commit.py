"""Rank 0's part of a save, beside the training: all ranks' files become one visible checkpoint, and old ones go."""

import os
import shutil
import threading
from collections.abc import Sequence
from dataclasses import replace

from store.checkpoint import checkpoints
from store.checkpoint.manifest import MANIFEST_NAME, FileEntry, Manifest
from store.checkpoint.retention import steps_to_prune
from store.files import sync_directory, write_atomic
from store.run.records import SavedCheckpoint
from train.context import RankContext


class Commit:
    """Begins at once, in a thread of its own. The attributes may be read once `done` is set.

    `outcomes` are all ranks' files, or what went wrong; then what was written is removed. A kill at any instant leaves
    nothing behind but folders that the next start removes.
    """

    def __init__(self, context: RankContext, manifest: Manifest, outcomes: Sequence[FileEntry | str]):
        self._context, self._manifest, self._outcomes = context, manifest, outcomes
        self._folder = checkpoints.temporary_path(context.run, manifest.identity.step, context.attempt.number)
        self.problem: str | None = None  # why there is no checkpoint of it
        self.error: Exception | None = None  # what must end the run
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._run, name=f"commit-{manifest.identity.step}", daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.problem = self._publish()
            if self.problem is None:
                print(f"saved step {self._manifest.identity.step}", flush=True)
                self._prune()
            else:
                shutil.rmtree(self._folder, ignore_errors=True)
        except Exception as error:  # noqa: BLE001  (rank 0's main thread raises it)
            self.error = error
        finally:
            self.done.set()

    def _publish(self) -> str | None:
        """Manifest, fsync, rename, fsync of the parent; or what stands in the way."""
        run, identity, folder = self._context.run, self._manifest.identity, self._folder
        files = tuple(outcome for outcome in self._outcomes if isinstance(outcome, FileEntry))
        problems = [outcome for outcome in self._outcomes if isinstance(outcome, str)]
        if problems:
            return problems[0]
        try:
            newer = [attempt.number for attempt in run.attempts() if attempt.number > identity.attempt]
            if newer:
                return f"attempt {newer[-1]} of this run has begun, and attempt {identity.attempt} writes no more"
            write_atomic(folder / MANIFEST_NAME, replace(self._manifest, files=files).to_text())
            final = checkpoints.committed_path(run, identity.step, identity.attempt)
            os.rename(folder, final)
            sync_directory(run.checkpoints_path)
        except OSError as error:
            return f"{folder}: {error.strerror}"
        saved_path = self._context.attempt.saved_path
        try:
            SavedCheckpoint(final.name).write(saved_path)
        except OSError as error:  # the checkpoint stands; its note may lie on another, full file system
            print(f"ALARM: {saved_path} could not be written: {error.strerror}", flush=True)
        return None

    def _prune(self) -> None:
        """Only after a commit: remove what the policy does not keep."""
        try:
            committed = checkpoints.list_checkpoints(self._context.run)
        except OSError as error:  # the next save prunes
            print(f"ALARM: old checkpoints could not be listed: {error.strerror}", flush=True)
            return
        policy = self._context.config.checkpoint
        superfluous = steps_to_prune(policy, [checkpoint.step for checkpoint in committed])
        for checkpoint in committed:
            if checkpoint.step in superfluous:
                try:
                    checkpoints.remove_checkpoint(checkpoint)
                except OSError as error:  # the new one stands; the old one only takes room
                    print(f"ALARM: {checkpoint.path} could not be removed: {error.strerror}", flush=True)
