"""The checkpoints of a run as its directory shows them: the scan is the truth, there is no pointer file.

Fenced by readers: an attempt's first act is to record what it resumes from, and whatever an older attempt commits
beyond that point is not seen any more.
"""

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from configs.errors import LockstepError, UserError
from store.checkpoint.manifest import MANIFEST_NAME, FileEntry, Manifest, digest_file, digest_layout
from store.files import sync_directory
from store.run.attempt_plan import AttemptPlan
from store.run.end import End
from store.run.records import ResumePoint, SavedCheckpoint
from store.run.run_dir import RunDir

if TYPE_CHECKING:
    from store.checkpoint.fragment_file import FragmentReader

_NAME = re.compile(r"step-([0-9]{8,})-a([0-9]{4,})")
_QUARANTINE = "quarantined-"
_TEMPORARY = "tmp-"


@dataclass(frozen=True)
class Checkpoint:
    """One committed checkpoint's folder."""

    path: Path
    step: int
    attempt: int

    def read_manifest(self) -> Manifest:
        """Raises ValueError where it cannot be read, LockstepError where a newer Lockstep wrote it; both name it."""
        path = self.path / MANIFEST_NAME
        try:
            manifest = Manifest.from_text(path.read_text(encoding="utf-8"))
        except (ValueError, OSError) as error:
            raise ValueError(f"{path}: {error}") from None
        except LockstepError as error:
            raise LockstepError(f"{path}: {error}") from None
        if (manifest.identity.step, manifest.identity.attempt) != (self.step, self.attempt):
            raise ValueError(f"{path}: belongs to step {manifest.identity.step} of attempt {manifest.identity.attempt}")
        return manifest

    def open_reader(self) -> "FragmentReader":
        """Its values. Verifies nothing: see `verify`."""
        from store.checkpoint.fragment_file import FragmentReader

        return FragmentReader([self.path / file.name for file in self.read_manifest().files])

    def verify_file(self, file: FileEntry) -> str | None:
        """What is wrong with one of the manifest's files, or None. Reads all of it."""
        path = self.path / file.name
        try:
            if (size := path.stat().st_size) != file.size:
                return f"{path}: holds {size} bytes, not {file.size}"
            return None if digest_file(path) == file.sha256 else f"{path}: does not match its digest"
        except OSError as error:
            return f"{path}: cannot be read ({error.strerror})"

    def verify(self) -> list[str]:
        """All that is wrong with it; empty where it verifies. Reads every byte."""
        try:
            manifest = self.read_manifest()
        except ValueError as error:
            return [str(error)]
        found = [self.verify_file(file) for file in manifest.files]
        problems = [problem for problem in found if problem is not None]
        return problems or self.identity_problems(manifest)

    def identity_problems(self, manifest: Manifest) -> list[str]:
        """What digests do not tell, where these are right: files and values that belong elsewhere, or are missing."""
        identity, run = manifest.identity, RunDir(self.path.parent.parent)
        if identity.run != run.path.name:
            return [f"{self.path}: belongs to the run {identity.run}"]
        plan = AttemptPlan.read_if_written(run.attempt(self.attempt).plan_path)
        if plan is not None and plan.nonce != identity.nonce:
            return [f"{self.path}: belongs to another attempt {self.attempt} of a run of this name"]
        listed = {file.name for file in manifest.files}
        for path in sorted(self.path.glob("fragments-*")):
            if path.name not in listed:
                return [f"{path}: is not in the manifest"]
        try:
            reader = self.open_reader()
            sizes = {kind: reader.sizes(kind) for kind in manifest.kinds}
        except ValueError as error:
            return [str(error)]
        for path, carried in reader.metadata().items():
            if carried != identity.as_text():
                return [f"{path}: belongs to another checkpoint"]
        wanted = {kind: manifest.layouts.get(kind, identity.layout) for kind in manifest.kinds}
        incomplete = [kind for kind in sizes if digest_layout(sizes[kind]) != wanted[kind]]
        return [f"{self.path}: {kind} is incomplete" for kind in incomplete]

    def quarantine(self) -> Path:
        """Take it out of sight and keep it for whoever wants to know what happened."""
        target = self.path.with_name(_QUARANTINE + self.path.name)
        while os.path.lexists(target):
            target = target.with_name(_QUARANTINE + target.name)
        self.path.rename(target)
        sync_directory(target.parent)
        return target


def list_checkpoints(run: RunDir) -> list[Checkpoint]:
    """The committed checkpoints that count, oldest first."""
    found = []
    paths = run.checkpoints_path.iterdir() if run.checkpoints_path.is_dir() else ()
    for path in paths:
        match = _NAME.fullmatch(path.name)
        if match is not None:
            found.append(Checkpoint(path, step=int(match[1]), attempt=int(match[2])))
    starts = {attempt.number: ResumePoint.read_if_written(attempt.resume_path) for attempt in run.attempts()}
    fences = {number: start.step for number, start in starts.items() if start is not None}

    def counts(checkpoint: Checkpoint) -> bool:
        later = (step for attempt, step in fences.items() if attempt > checkpoint.attempt)
        return all(checkpoint.step <= step for step in later)

    return sorted(filter(counts, found), key=lambda checkpoint: (checkpoint.step, checkpoint.attempt))


def find_recorded_checkpoint(run: RunDir) -> str | None:
    """A checkpoint that the records of `run` speak of, whether or not it is there; the newest attempt's first.

    Raises LockstepError, naming the file, for a record that is damaged.
    """
    for attempt in reversed(run.attempts()):
        saved = SavedCheckpoint.read_if_written(attempt.saved_path)
        if saved is not None:
            return saved.checkpoint
        end = End.read_if_written(attempt.end_path)
        if end is not None and end.checkpoint is not None:
            return end.checkpoint
        start = ResumePoint.read_if_written(attempt.resume_path)
        if start is not None and start.checkpoint is not None:
            return start.checkpoint
    return None


def find_checkpoint(run: RunDir, step: int | None) -> Checkpoint:
    """The checkpoint of `step`, or the newest. Raises UserError where there is none."""
    by_step = {checkpoint.step: checkpoint for checkpoint in list_checkpoints(run)}
    if not by_step:
        raise UserError(f"{run.path}: has no checkpoint yet")
    if step is None:
        return by_step[max(by_step)]
    if step not in by_step:
        raise UserError(f"{run.path}: has no checkpoint of step {step}; there are: {', '.join(map(str, by_step))}")
    return by_step[step]


def list_quarantined(run: RunDir) -> list[Path]:
    """Folders of checkpoints that did not verify, by name."""
    return sorted(run.checkpoints_path.glob(_QUARANTINE + "*"))


def committed_path(run: RunDir, step: int, attempt: int) -> Path:
    """The folder of a checkpoint that `attempt` committed."""
    return run.checkpoints_path / f"step-{step:08d}-a{attempt:04d}"


def temporary_path(run: RunDir, step: int, attempt: int) -> Path:
    """Where it is written before it is committed; the same name on every rank, with no clock in it."""
    return run.checkpoints_path / f"{_TEMPORARY}step-{step:08d}-a{attempt:04d}"


def remove_partial(run: RunDir) -> None:
    """Remove what earlier attempts left half-written. Only for the one attempt that holds the run."""
    for path in run.checkpoints_path.glob(_TEMPORARY + "*"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:  # nothing of ours
            path.unlink()


def remove_checkpoint(checkpoint: Checkpoint) -> None:
    """Out of sight in one rename, so that no reader meets half of it; then gone."""
    doomed = checkpoint.path.with_name(_TEMPORARY + checkpoint.path.name)
    checkpoint.path.rename(doomed)
    shutil.rmtree(doomed)
