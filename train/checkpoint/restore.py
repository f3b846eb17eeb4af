"""Resuming: rank 0 says which checkpoints there are, all ranks verify one, and only then is a tensor applied."""

from functools import partial

import torch

from configs.errors import LockstepError
from store.checkpoint import checkpoints
from store.checkpoint.checkpoints import Checkpoint
from store.checkpoint.fragment_file import FragmentReader
from store.checkpoint.manifest import Manifest
from store.run.records import ResumePoint
from store.run.run_dir import RunDir
from train.context import RankContext
from train.engines.base import Counters, Engine
from train.engines.ema import Ema
from train.process_group import World


def resume_run(context: RankContext, engine: Engine, ema: Ema | None) -> Checkpoint | None:
    """Load the newest checkpoint that verifies and answer it, the same on every rank; None where the run has none yet.

    What does not verify is put in quarantine, and the one before it is tried. Raises LockstepError where there are
    checkpoints and none of them is good, or there were some and they are away: a run never starts again in silence.
    """
    run, world = context.run, context.world
    start = _find_good(run, world, engine)
    if start is None:  # before this attempt records its start, which would hide what is fixed or comes back later
        _check_nothing_is_lost(run, world)
    if world.is_main_process:
        # The record fences older attempts: what one of them, cut off from us, still commits beyond it is not seen.
        checkpoints.remove_partial(run)
        step, name = (start.step, start.path.name) if start is not None else (0, None)
        ResumePoint(step, name, context.plan.nonce).write(context.attempt.resume_path)
    if start is not None:
        _apply(start, world, engine, ema)
        if world.is_main_process:
            print(f"resumed after step {start.step} from {start.path.name}", flush=True)
    return start


def _find_good(run: RunDir, world: World, engine: Engine) -> Checkpoint | None:
    """The newest checkpoint in which no rank finds anything wrong; newer ones are put in quarantine."""
    # Rank 0's list is everybody's: on a shared file system the others may not see the same folders yet.
    candidates: list[Checkpoint] = world.broadcast(checkpoints.list_checkpoints(run) if world.is_main_process else None)
    for candidate in reversed(candidates):
        problems = _verify(candidate, world, engine)
        if not problems:
            return candidate
        if world.is_main_process:
            kept = candidate.quarantine()
            print(f"{problems[0]}\nstep {candidate.step} is not used, and kept as {kept}", flush=True)
        world.barrier()  # nobody looks at the next one, or for those in quarantine, before this one is
    return None


def _check_nothing_is_lost(run: RunDir, world: World) -> None:
    """A run without a checkpoint may start from the base model only if it never had one."""
    bad = world.broadcast(checkpoints.list_quarantined(run) if world.is_main_process else None)
    if bad:
        raise LockstepError(
            f"{run.checkpoints_path}: {len(bad)} checkpoints and none verifies, so no step is taken; fix one and take "
            f"`quarantined-` off its name, or give the run another name to start from the base model"
        )
    name = world.broadcast(checkpoints.find_recorded_checkpoint(run) if world.is_main_process else None)
    if name is not None:
        raise LockstepError(
            f"{run.checkpoints_path}: holds no checkpoint, and {name} was saved there, so no step is taken; bring the "
            "folder back (is its file system mounted here?), or give the run another name to start from the base model"
        )


def _verify(checkpoint: Checkpoint, world: World, engine: Engine) -> list[str]:
    """All that any rank finds wrong, the same on every rank. The ranks share the reading of the files."""
    mine = world.gather(_verify_share(checkpoint, world))
    problems = [problem for problems_of_rank in mine for problem in problems_of_rank]
    # What lies in the files is looked at only where all their digests are right.
    if not problems and world.is_main_process:
        manifest = checkpoint.read_manifest()
        problems = checkpoint.identity_problems(manifest)
        problems = problems or _find_differences(checkpoint, manifest, engine)
    return list(world.broadcast(problems))


def _find_differences(checkpoint: Checkpoint, manifest: Manifest, engine: Engine) -> list[str]:
    """What the checkpoint holds, and this run's engine does not."""
    missing = [key for key in engine.state_keys if key not in manifest.kinds]
    if missing:
        return [f"{checkpoint.path}: is of another optimizer, and holds no {' and no '.join(missing)}"]
    if (manifest.identity.layout, manifest.layouts) != (engine.layout, engine.layouts):
        return [f"{checkpoint.path}: holds other parameters than this model trains"]
    return []


def _verify_share(checkpoint: Checkpoint, world: World) -> list[str]:
    """What is wrong with the manifest, or with every `world.size`-th file, from this rank's own on."""
    try:
        manifest = checkpoint.read_manifest()
    except ValueError as error:
        return [str(error)]
    results = [checkpoint.verify_file(file) for file in manifest.files[world.rank :: world.size]]
    return [problem for problem in results if problem is not None]


@torch.no_grad()
def _apply(checkpoint: Checkpoint, world: World, engine: Engine, ema: Ema | None) -> None:
    """Fill what this rank holds; reads only those bytes, whatever shape and engine wrote them."""
    manifest = checkpoint.read_manifest()
    reader = checkpoint.open_reader()
    for key in engine.state_keys:
        engine.load(key, partial(_read, reader, key))
    if ema is not None:
        for fragment, average in zip(engine.owned, ema.averages, strict=True):
            average.copy_(_read(reader, "ema", fragment.name, fragment.offset, fragment.length))
    # The masters are right now; the passes still see the base model, and the counters are those of a fresh engine.
    engine.publish()
    engine.set_counters(checkpoint.step, _counters(manifest))
    world.barrier()


def _read(reader: FragmentReader, kind: str, name: str, offset: int, length: int) -> torch.Tensor:
    return torch.from_numpy(reader.read(kind, name, offset, length))


def _counters(manifest: Manifest) -> Counters:
    return {
        "optimizer_step": manifest.optimizer_step,
        "skipped_steps": manifest.skipped_steps,
        "loss_scaler": manifest.loss_scaler,
    }
