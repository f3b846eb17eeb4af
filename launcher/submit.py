"""From a config to an attempt that is ready to start: everything is checked first, then everything is written."""

import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from configs import checkpoints, deepspeed_config
from configs.attempt_plan import AttemptPlan
from configs.batch import BatchPlan, Shape, solve
from configs.dataset import check_images, digest, list_samples, settle, to_lines
from configs.end import End
from configs.errors import UserError
from configs.length import length_of
from configs.load import dump, load
from configs.run_dir import Attempt, RunDir, write_atomic, write_json
from configs.schema import RunConfig
from launcher.hub import resolve


@dataclass(frozen=True)
class Ready:
    """A run that may start: everything about it is checked, and nothing is written yet."""

    run: RunDir
    config: RunConfig
    cut: BatchPlan
    plan: AttemptPlan
    samples: str  # the text of dataset.jsonl
    problems: list[str]  # what is wrong with the samples that are left out

    def open_attempt(self) -> Attempt:
        """Write the run's folder with its next attempt."""
        try:
            self.run.path.mkdir(parents=True, exist_ok=True)
            write_atomic(self.run.dataset, self.samples)
            write_atomic(self.run.config, dump(self.config))
            attempt = self.run.open_attempt()
            write_json(attempt.deepspeed, deepspeed_config.render(self.config, self.cut))
            self.plan.write(attempt)
        except OSError as error:
            cure = "name another folder with runs"
            raise UserError(f"{self.run.path}: cannot be written ({error.strerror}); {cure}") from None
        return attempt


def check(config: RunConfig, shape: Shape) -> Ready:
    """The run of `config`, its next attempt planned on `shape`. Raises UserError; writes nothing."""
    cut = solve(config, shape)
    folder = Path(config.data.images)
    listing = check_images(folder, list_samples(folder))
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
    check_same_run(run, config, plan)
    return Ready(run, config, cut, plan, lines, listing.problems)


def is_finished(ready: Ready) -> bool:
    """Whether the run was trained to the end that its config asks for."""
    ends = [end for attempt in ready.run.attempts() if (end := End.read(attempt)) and end.reason == "finished"]
    return bool(ends) and ends[-1].step >= ready.plan.total_steps


def check_same_run(run: RunDir, config: RunConfig, plan: AttemptPlan) -> None:
    """A name is a run's id. A resume may change its shape, its length and its rates, not what it learns from.

    Raises UserError with the differences.
    """
    if not run.config.is_file() or not run.attempts():
        return
    before = load(run.config)
    changed = [
        f"{name}: {old} → {new}"
        for name, old, new in zip(_FIXED, _fixed(before), _fixed(config), strict=True)
        if old != new
    ]
    last = AttemptPlan.read(run.attempts()[-1])
    if last.batch_plan.batch != plan.batch_plan.batch:
        changed.append(f"batch: {last.batch_plan.batch} → {plan.batch_plan.batch}")
    if last.dataset_digest != plan.dataset_digest:
        changed.append(f"the samples in {config.data.images}")
    if changed:
        listed = "\n  ".join(changed)
        cure = f"give this one another name; with --fork {run.path} it starts from that run's weights"
        raise UserError(f"{run.path} holds another run:\n  {listed}\n{cure}")
    there = checkpoints.visible(run)
    if there and there[-1].step > plan.total_steps:
        raise UserError(f"{run.path}: step {there[-1].step} is done and {plan.total_steps} are asked for; ask for more")


_FIXED = ("model", "seed", "prediction", "precision", "ema", "resolution", "crop", "flip", "caption_dropout")


def _fixed(config: RunConfig) -> tuple[object, ...]:
    """What makes a run this run, beside its batch and dataset, in the order of _FIXED."""
    data = config.data
    own = (config.model, config.seed, config.prediction, config.precision, config.ema is not None)
    return (*own, data.resolution, data.crop, data.flip, data.caption_dropout)


def threads_per_rank(ranks: int) -> int:
    """An equal share of this machine's cores, unless OMP_NUM_THREADS says otherwise."""
    return int(os.environ.get("OMP_NUM_THREADS") or max(1, len(os.sched_getaffinity(0)) // ranks))
