"""The checkpoints of a run as its directory shows them: the scan is the truth, there is no pointer file.

Fenced by readers: an attempt's first act is to record what it resumes from, and whatever an older attempt commits
beyond that point is not seen any more.
"""

import json
import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from configs.errors import LockstepError, UserError
from store.checkpoint.manifest import MANIFEST_NAME, FileEntry, Manifest, digest_file, digest_layout
from store.run.attempt_plan import AttemptPlan
from store.run.run_dir import Attempt, RunDir, sync_directory, write_json

if TYPE_CHECKING:
    from store.checkpoint.fragment_file import FragmentReader

_NAME = re.compile(r"step-(\d{8,})-a(\d{4,})")
_QUARANTINE = "quarantined-"
_TEMPORARY = "tmp-"


@dataclass(frozen=True)
class Checkpoint:
    """One committed checkpoint's folder."""

    path: Path
    step: int
    attempt: int

    def read_manifest(self) -> Manifest:
        """Raises ValueError, naming the file, where it does not read."""
        path = self.path / MANIFEST_NAME
        try:
            manifest = Manifest.from_text(path.read_text(encoding="utf-8"))
        except (ValueError, OSError) as error:
            raise ValueError(f"{path}: {error}") from None
        if (manifest.identity.step, manifest.identity.attempt) != (self.step, self.attempt):
            raise ValueError(f"{path}: belongs to step {manifest.identity.step} of attempt {manifest.identity.attempt}")
        return manifest

    def open_reader(self) -> "FragmentReader":
        """Its values. Verifies nothing: see `problems`."""
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
            return f"{path}: does not read ({error.strerror})"

    def verify(self) -> list[str]:
        """All that is wrong with it; empty where it verifies. Reads every byte."""
        try:
            manifest = self.read_manifest()
        except ValueError as error:
            return [str(error)]
        return [problem for file in manifest.files if (problem := self.verify_file(file))] or self.identity_problems(
            manifest
        )

    def identity_problems(self, manifest: Manifest) -> list[str]:
        """What digests do not tell, where these are right: files and values that belong elsewhere, or are missing."""
        identity, run = manifest.identity, RunDir(self.path.parent.parent)
        if identity.run != run.path.name:
            return [f"{self.path}: belongs to the run {identity.run}"]
        plan = run.attempt(self.attempt).plan_path
        if plan.is_file() and AttemptPlan.read(run.attempt(self.attempt)).nonce != identity.nonce:
            return [f"{self.path}: belongs to another attempt {self.attempt} of a run of this name"]
        listed = {file.name for file in manifest.files}
        if unlisted := [path for path in sorted(self.path.glob("fragments-*")) if path.name not in listed]:
            return [f"{unlisted[0]}: is not in the manifest"]
        try:
            reader = self.open_reader()
            sizes = {kind: reader.sizes(kind) for kind in manifest.kinds}
        except ValueError as error:
            return [str(error)]
        if foreign := [path for path, carried in reader.metadata().items() if carried != identity.as_text()]:
            return [f"{foreign[0]}: belongs to another checkpoint"]
        return [f"{self.path}: {kind} is not whole" for kind in sizes if digest_layout(sizes[kind]) != identity.layout]

    def quarantine(self) -> Path:
        """Take it out of sight and keep it for whoever wants to know what happened."""
        target = self.path.with_name(_QUARANTINE + self.path.name)
        self.path.rename(target)
        sync_directory(target.parent)
        return target


@dataclass(frozen=True)
class ResumePoint:
    """Where an attempt starts: after `step`, from checkpoint `checkpoint` (None: the base model)."""

    step: int
    checkpoint: str | None
    nonce: str

    def write(self, attempt: Attempt) -> None:
        write_json(attempt.resume_path, asdict(self))

    @classmethod
    def read(cls, attempt: Attempt) -> "ResumePoint | None":
        return cls(**json.loads(attempt.resume_path.read_text())) if attempt.resume_path.is_file() else None


def list_checkpoints(run: RunDir) -> list[Checkpoint]:
    """The committed checkpoints that count, oldest first."""
    found = []
    for path in run.checkpoints_path.iterdir() if run.checkpoints_path.is_dir() else ():
        if match := _NAME.fullmatch(path.name):
            found.append(Checkpoint(path, int(match[1]), int(match[2])))
    resumed = {attempt.number: record.step for attempt in run.attempts() if (record := ResumePoint.read(attempt))}
    return sorted(
        (c for c in found if all(c.step <= step for number, step in resumed.items() if number > c.attempt)),
        key=lambda checkpoint: (checkpoint.step, checkpoint.attempt),
    )


def record_saved_checkpoint(attempt: Attempt, checkpoint: Path) -> None:
    """Note down what `attempt` has just committed, outside the folder that holds it."""
    write_json(attempt.saved_path, {"checkpoint": checkpoint.name})


def find_recorded_checkpoint(run: RunDir) -> str | None:
    """A checkpoint that the records of `run` speak of, whether or not it is there; the newest attempt's first.

    Raises LockstepError, naming the file, for a record that does not read.
    """
    for attempt in reversed(run.attempts()):
        for path in (attempt.saved_path, attempt.end_path, attempt.resume_path):
            try:
                name = json.loads(path.read_text())["checkpoint"] if path.is_file() else None
            except (ValueError, KeyError, TypeError) as error:
                raise LockstepError(
                    f"{path}: is damaged ({error}), so nobody knows what was saved; remove it"
                ) from None
            if name is not None:
                return str(name)
    return None


def find_checkpoint(run: RunDir, step: int | None) -> Checkpoint:
    """The checkpoint of `step`, or the newest. Raises UserError where there is none."""
    there = {checkpoint.step: checkpoint for checkpoint in list_checkpoints(run)}
    if not there:
        raise UserError(f"{run.path}: has no checkpoint yet")
    if step is not None and step not in there:
        raise UserError(f"{run.path}: has no checkpoint of step {step}; there are: {', '.join(map(str, there))}")
    return there[max(there) if step is None else step]


def list_quarantined(run: RunDir) -> list[Path]:
    return sorted(run.checkpoints_path.glob(_QUARANTINE + "*"))


def committed_path(run: RunDir, step: int, attempt: int) -> Path:
    return run.checkpoints_path / f"step-{step:08d}-a{attempt:04d}"


def temporary_path(run: RunDir, step: int, attempt: int) -> Path:
    """Where it is written before it is committed; the same name on every rank, with no clock in it."""
    return run.checkpoints_path / f"{_TEMPORARY}step-{step:08d}-a{attempt:04d}"


def remove_partial(run: RunDir) -> None:
    """Remove what earlier attempts left half-written. Only for the one attempt that holds the run."""
    for path in run.checkpoints_path.glob(_TEMPORARY + "*"):
        shutil.rmtree(path)


def remove_checkpoint(checkpoint: Checkpoint) -> None:
    """Out of sight in one rename, so that no reader meets half of it; then gone."""
    doomed = checkpoint.path.with_name(_TEMPORARY + checkpoint.path.name)
    checkpoint.path.rename(doomed)
    shutil.rmtree(doomed)
