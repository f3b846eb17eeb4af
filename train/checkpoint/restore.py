"""Resuming: rank 0 says what there is, all ranks verify it, and only then is a tensor applied."""

import torch

from configs.errors import LockstepError
from store.checkpoint import checkpoints
from store.checkpoint.checkpoints import Checkpoint, ResumePoint
from store.run.attempt_plan import AttemptPlan
from store.run.run_dir import Attempt, RunDir
from train.engines import zero_state as state
from train.engines.ema import Ema
from train.engines.zero import Engine
from train.process_group import World


def resume_run(run: RunDir, attempt: Attempt, plan: AttemptPlan, world: World, engine: Engine, ema: Ema | None) -> int:
    """Load the newest checkpoint that verifies and answer its step; 0 where the run has none yet.

    What does not verify is put in quarantine, and the one before it is tried. Raises LockstepError where there are
    checkpoints and none of them is good, or there were some and they are away: a run never starts again in silence.
    """
    while True:
        candidates = world.broadcast(checkpoints.list_checkpoints(run) if world.is_main_process else None)
        if not candidates:
            break
        problems = _verify(candidates[-1], world, engine)
        if not problems:
            break
        if world.is_main_process:
            kept = candidates[-1].quarantine()
            print(f"{problems[0]}\nstep {candidates[-1].step} is not used, and kept as {kept}", flush=True)
        world.barrier()
    chosen = candidates[-1] if candidates else None
    if chosen is None:  # before this attempt records its start, which would hide what is mended or comes back later
        _check_nothing_is_lost(run, world)
    if world.is_main_process:
        checkpoints.remove_partial(run)
        ResumePoint(chosen.step if chosen else 0, chosen.path.name if chosen else None, plan.nonce).write(attempt)
    if chosen is None:
        return 0
    _apply(chosen, world, engine, ema)
    if world.is_main_process:
        print(f"resumed after step {chosen.step} from {chosen.path.name}", flush=True)
    return chosen.step


def _check_nothing_is_lost(run: RunDir, world: World) -> None:
    """A run without a checkpoint may start from the base model only if it never had one."""
    bad = world.broadcast(checkpoints.list_quarantined(run) if world.is_main_process else None)
    if bad:
        raise LockstepError(
            f"{run.checkpoints}: {len(bad)} checkpoints and none verifies, so no step is taken; mend one and take "
            f"`quarantined-` off its name, or give the run another name to start from the base model"
        )
    name = world.broadcast(checkpoints.find_recorded_checkpoint(run) if world.is_main_process else None)
    if name is not None:
        raise LockstepError(
            f"{run.checkpoints}: holds no checkpoint, and {name} was saved there, so no step is taken; bring the "
            "folder back (is its file system mounted here?), or give the run another name to start from the base model"
        )


def _verify(checkpoint: Checkpoint, world: World, engine: Engine) -> list[str]:
    """All that any rank finds wrong; the ranks share the reading. What lies in the files is looked at only where all
    their digests are right."""
    try:
        manifest = checkpoint.read_manifest()
        found = [problem for f in manifest.files[world.rank :: world.size] if (problem := checkpoint.verify_file(f))]
    except ValueError as error:
        found = [str(error)]
    problems = [problem for part in world.gather(found) for problem in part]
    if not problems and world.is_main_process:
        problems = checkpoint.identity_problems(manifest)
        if not problems and manifest.identity.layout != engine.layout:
            problems = [f"{checkpoint.path}: holds other parameters than this model trains"]
    return list(world.broadcast(problems))


def _apply(checkpoint: Checkpoint, world: World, engine: Engine, ema: Ema | None) -> None:
    """Fill what this rank holds; reads only those bytes."""
    manifest = checkpoint.read_manifest()
    reader = checkpoint.open_reader()
    deepspeed, held = engine.deepspeed, engine.held
    state.ensure_moments(deepspeed, held)

    def fill(target: torch.Tensor, kind: str, fragment: state.Fragment) -> None:
        target.copy_(torch.from_numpy(reader.read(kind, fragment.name, fragment.offset, fragment.length)))

    with torch.no_grad():
        for fragment in held:
            fill(fragment.master, "weights", fragment)
            for key in state.MOMENTS:
                fill(fragment.moment(deepspeed.basic_optimizer, key), key, fragment)
        if ema is not None:
            for fragment, average in zip(engine.owned, ema.averages, strict=True):
                fill(average, "ema", fragment)
    state.masters_to_parameters(deepspeed)
    state.set_counters(deepspeed, held, step=checkpoint.step, applied=manifest.optimizer_step)
    state.set_loss_scaler(deepspeed, manifest.loss_scaler)
    world.barrier()
