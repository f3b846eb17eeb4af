"""From a config to an attempt that is ready to start: everything is checked first, then everything is written."""

import os
import secrets
from pathlib import Path

from configs import deepspeed_config
from configs.attempt_plan import AttemptPlan
from configs.batch import Shape, solve
from configs.dataset import check_images, digest, list_samples, settle, to_lines
from configs.end import End
from configs.errors import UserError
from configs.length import length_of
from configs.load import dump, load
from configs.run_dir import Attempt, RunDir, write_atomic, write_json
from configs.schema import RunConfig
from launcher.hub import resolve


def prepare(config: RunConfig, shape: Shape) -> tuple[RunDir, Attempt | None]:
    """The run's folder with its next attempt, planned on `shape`; no attempt where the run is trained to its end.

    Raises UserError before a byte is written.
    """
    cut = solve(config, shape)
    listing = check_images(Path(config.data.images), list_samples(Path(config.data.images)))
    samples = settle(config.data, listing)
    lines = to_lines(samples)
    plan = AttemptPlan(
        nodes=cut.shape.nodes,
        gpus_per_node=cut.shape.gpus_per_node,
        micro_batch=cut.micro_batch,
        gradient_accumulation_steps=cut.accumulation,
        total_steps=length_of(config, cut.batch, len(samples)).steps,
        model_folder=str(resolve(config.model)),
        nonce=secrets.token_hex(8),
        dataset_size=len(samples),
        dataset_digest=digest(lines),
    )
    run = RunDir(Path(config.runs, config.name))
    check_same_run(run, config, plan.dataset_digest)
    if finished(run):
        return run, None
    try:
        run.path.mkdir(parents=True, exist_ok=True)
        write_atomic(run.dataset, lines)
        write_atomic(run.config, dump(config))
        attempt = run.open_attempt()
        plan.write(attempt)
        write_json(attempt.deepspeed, deepspeed_config.render(config, cut))
    except OSError as error:
        raise UserError(f"{run.path}: cannot be written ({error.strerror}); name another folder with runs") from None
    for problem in listing.problems:
        print(f"skipped {problem}")
    if listing.problems:
        print(f"skipped {len(listing.problems)} bad samples, {len(samples)} are left")
    return run, attempt


def finished(run: RunDir) -> End | None:
    """The end record of a run that was trained to its end."""
    ends = [end for attempt in run.attempts() if (end := End.read(attempt)) and end.reason == "finished"]
    return ends[-1] if ends else None


def check_same_run(run: RunDir, config: RunConfig, dataset_digest: str) -> None:
    """A name is a run's id: the same name with another config or dataset would be another run in its place."""
    if not run.config.is_file():
        return
    before, now = load(run.config).model_dump(mode="json"), config.model_dump(mode="json")
    changed = [f"{key}: {before[key]} → {now[key]}" for key in now if before[key] != now[key]]
    if run.dataset.is_file() and digest(run.dataset.read_text(encoding="utf-8")) != dataset_digest:
        changed.append(f"the samples in {config.data.images}")
    if changed:
        listed = "\n  ".join(changed)
        raise UserError(f"{run.path} holds a run with another config:\n  {listed}\ngive this one another name")


def threads_per_rank(ranks: int) -> int:
    """An equal share of this machine's cores, unless OMP_NUM_THREADS says otherwise."""
    return int(os.environ.get("OMP_NUM_THREADS") or max(1, len(os.sched_getaffinity(0)) // ranks))
