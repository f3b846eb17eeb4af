"""`lockstep checkpoints`: what a run has saved, whether it verifies, how two steps differ. Needs no torch."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from configs.errors import LockstepError, UserError
from configs.reading.load import load_config
from launcher.backend import find_backend_job
from launcher.run_lock import hold_run
from store.checkpoint import checkpoints
from store.checkpoint.checkpoints import Checkpoint
from store.checkpoint.retention import steps_to_prune
from store.run.liveness import FRESH, find_training_attempt
from store.run.run_dir import RunDir

if TYPE_CHECKING:  # numpy takes longer to import than most commands to answer
    import numpy as np
    from numpy.typing import NDArray

    from store.checkpoint.fragment_file import FragmentReader


@dataclass(frozen=True)
class CheckpointInfo:
    """One checkpoint as people see it; `problems` is None where nobody looked."""

    step: int
    attempt: int
    name: str
    size: int | None
    world_size: int | None
    engine: str | None
    zero: int | None  # its stage, of an engine that knows such a thing
    problems: list[str] | None


def describe_checkpoints(run: RunDir, *, verify: bool) -> list[CheckpointInfo]:
    """All visible checkpoints, oldest first. `verify` reads every byte of them."""
    return [_describe(checkpoint, verify) for checkpoint in checkpoints.list_checkpoints(run)]


def _describe(checkpoint: Checkpoint, verify: bool) -> CheckpointInfo:
    step, attempt, name = checkpoint.step, checkpoint.attempt, checkpoint.path.name
    try:
        manifest = checkpoint.read_manifest()
    except ValueError as error:
        return CheckpointInfo(step, attempt, name, None, None, None, None, [str(error)])
    problems = checkpoint.verify() if verify else None
    shape = manifest.size, manifest.world_size, manifest.engine, manifest.zero
    return CheckpointInfo(step, attempt, name, *shape, problems)


def prune_checkpoints(run: RunDir, keep: int | None) -> list[Checkpoint]:
    """Remove what the run's own policy (or `keep`) does not keep, and return what was removed.

    The newest that verifies is never removed, whatever the policy says. Raises UserError while the run is trained, here
    or by a job, LockstepError where nobody can tell.
    """
    with hold_run(run):
        active = find_backend_job(run, besides_lock=True)  # no process of a cluster's job holds the lock
        if active is not None and not active[1].held:
            _, job = active
            end_it = f"end it first: lockstep stop {run.path}, or lockstep cancel {run.path}"
            raise UserError(f"{run.path}: is {job.name} ({job.describe()}); {end_it}")
        attempt = find_training_attempt(run)
        if attempt is not None:
            recent = f"ranks of attempt {attempt.number} gave a sign of life within the last {FRESH:.0f} s"
            raise UserError(f"{run.path}: is being trained: {recent}")
        return _prune(run, keep)


def _prune(run: RunDir, keep: int | None) -> list[Checkpoint]:
    policy = load_config(run.config_path).checkpoint
    if keep is not None:
        policy = policy.model_copy(update={"keep": keep})
    visible = checkpoints.list_checkpoints(run)
    newest_verified = next((checkpoint for checkpoint in reversed(visible) if not checkpoint.verify()), None)
    steps = steps_to_prune(policy, [checkpoint.step for checkpoint in visible])
    removed = [checkpoint for checkpoint in visible if checkpoint.step in steps and checkpoint != newest_verified]
    for checkpoint in removed:
        checkpoints.remove_checkpoint(checkpoint)
    return removed


@dataclass(frozen=True)
class Difference:
    """How one value of one parameter differs between two steps."""

    kind: str
    name: str
    largest: float  # of the absolute differences
    relative: float  # norm of the difference, relative to the norm at the first step


def compare_checkpoints(run: RunDir, first: int, second: int) -> list[Difference]:
    """Every tensor that is not the same at steps `first` and `second`, the most changed first.

    Raises UserError where one of them has no checkpoint, LockstepError where one is damaged.
    """
    pair = checkpoints.find_checkpoint(run, first), checkpoints.find_checkpoint(run, second)
    try:
        differences = list(_differences(*(checkpoint.open_reader() for checkpoint in pair)))
    except ValueError as error:
        raise LockstepError(f"{error}; lockstep checkpoints {run.path} --verify names all that is damaged") from None
    return sorted(differences, key=lambda difference: -difference.relative)


def _differences(before: "FragmentReader", after: "FragmentReader") -> Iterator[Difference]:
    for kind in sorted(before.kinds() | after.kinds()):
        sizes_before, sizes_after = before.sizes(kind), after.sizes(kind)
        for name in sorted(sizes_before.keys() | sizes_after.keys()):
            size = sizes_before.get(name)
            if size is None or size != sizes_after.get(name):
                yield Difference(kind, name, float("inf"), float("inf"))
                continue
            difference = _compare(kind, name, before.read(kind, name, 0, size), after.read(kind, name, 0, size))
            if difference is not None:
                yield difference


def _compare(kind: str, name: str, before: "NDArray[np.float32]", after: "NDArray[np.float32]") -> Difference | None:
    """None where the two are equal."""
    import numpy as np

    if np.array_equal(before, after):
        return None
    norm = max(float(np.linalg.norm(before)), 1e-30)  # of a tensor that was all zeros, such as a first moment
    change = after - before
    return Difference(kind, name, float(np.abs(change).max()), float(np.linalg.norm(change)) / norm)
