"""`lockstep checkpoints`: what a run has saved, whether it verifies, how two steps differ. Needs no torch."""

from dataclasses import dataclass

from configs.errors import UserError
from configs.reading.load import load_config
from launcher.backend import find_active_job
from launcher.run_lock import hold_run
from store.checkpoint import checkpoints
from store.checkpoint.checkpoints import Checkpoint
from store.checkpoint.retention import steps_to_prune
from store.run.liveness import FRESH, find_training_attempt
from store.run.run_dir import RunDir


@dataclass(frozen=True)
class CheckpointInfo:
    """One checkpoint as people see it; `problems` is None where nobody looked."""

    step: int
    attempt: int
    name: str
    size: int | None
    world_size: int | None
    zero: int | None
    problems: list[str] | None


def describe_checkpoints(run: RunDir, *, verify: bool) -> list[CheckpointInfo]:
    """All visible checkpoints, oldest first."""
    return [_row(checkpoint, verify) for checkpoint in checkpoints.list_checkpoints(run)]


def _row(checkpoint: Checkpoint, verify: bool) -> CheckpointInfo:
    try:
        manifest = checkpoint.read_manifest()
    except ValueError as error:
        return CheckpointInfo(checkpoint.step, checkpoint.attempt, checkpoint.path.name, None, None, None, [str(error)])
    problems = checkpoint.verify() if verify else None
    name, of = checkpoint.path.name, manifest
    return CheckpointInfo(checkpoint.step, checkpoint.attempt, name, of.size, of.world_size, of.zero, problems)


def prune_checkpoints(run: RunDir, keep: int | None) -> list[Checkpoint]:
    """Remove what the run's own policy (or `keep`) does not keep, and answer what went.

    The newest that verifies is never removed, whatever the policy says. Raises UserError while the run is trained, here
    or by a job, LockstepError where nobody can tell.
    """
    with hold_run(run):
        active = find_active_job(run, besides_lock=True)  # no process of a cluster's job holds the lock
        if active is not None and not active[1].held:
            _, job = active
            raise UserError(f"{run.path}: is {job.name} ({job.describe()}); lockstep stop or lockstep cancel ends it")
        if (attempt := find_training_attempt(run)) is not None:
            words = f"ranks of attempt {attempt.number} gave a sign of life within the last {FRESH:.0f} s"
            raise UserError(f"{run.path}: is being trained: {words}")
        return _prune(run, keep)


def _prune(run: RunDir, keep: int | None) -> list[Checkpoint]:
    policy = load_config(run.config).checkpoint
    if keep is not None:
        policy = policy.model_copy(update={"keep": keep})
    there = checkpoints.list_checkpoints(run)
    verified = next((c for c in reversed(there) if not c.verify()), None)
    doomed = set(steps_to_prune(policy, [c.step for c in there]))
    gone = [c for c in there if c.step in doomed and c != verified]
    for checkpoint in gone:
        checkpoints.remove_checkpoint(checkpoint)
    return gone


@dataclass(frozen=True)
class Difference:
    """How one value of one parameter differs between two steps."""

    kind: str
    name: str
    largest: float  # of the absolute differences
    relative: float  # norm of the difference, relative to the norm at the first step


def compare_checkpoints(run: RunDir, first: int, second: int) -> list[Difference]:
    """Every tensor that is not the same at steps `first` and `second`, the most changed first."""
    import numpy as np

    before, after = (
        checkpoint.open_reader()
        for checkpoint in (checkpoints.find_checkpoint(run, first), checkpoints.find_checkpoint(run, second))
    )
    found = []
    for kind in sorted(before.kinds() | after.kinds()):
        sizes, others = before.sizes(kind), after.sizes(kind)
        for name in sorted(sizes.keys() | others.keys()):
            if sizes.get(name) != others.get(name):
                found.append(Difference(kind, name, float("inf"), float("inf")))
                continue
            a, b = (reader.read(kind, name, 0, sizes[name]) for reader in (before, after))
            if not np.array_equal(a, b):
                change = float(np.linalg.norm(b - a)) / max(float(np.linalg.norm(a)), 1e-30)
                found.append(Difference(kind, name, float(np.abs(b - a).max()), change))
    return sorted(found, key=lambda difference: -difference.relative)
