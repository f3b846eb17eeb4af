"""From a config to an attempt that is ready to start: everything is checked first, then everything is written."""

import os
from dataclasses import dataclass
from pathlib import Path

from configs import deepspeed_config
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
        dataset_size=len(samples),
        dataset_digest=digest(lines),
    )
    run = RunDir(Path(config.runs, config.name))
    check_same_run(run, config, plan.dataset_digest)
    return Ready(run, config, cut, plan, lines, listing.problems)


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
