"""From a config to an attempt that is ready to start: everything is checked first, then everything is written."""

import os
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from configs.errors import UserError
from configs.pipelines import check_objective
from configs.reading.load import dump_config, load_config
from configs.schema import RunConfig
from configs.solve.batch import BatchPlan, Shape
from configs.solve.length import solve_length
from launcher.manage.control import clear_requests
from launcher.submit.hub import resolve_model
from store.checkpoint import checkpoints
from store.dataset.listing import check_images, digest_samples, format_samples, list_samples, select_samples
from store.run.attempt_plan import AttemptPlan
from store.run.code_version import read_code_version
from store.run.end import End
from store.run.run_dir import RunDir, write_atomic
from store.run.submission import Submission, plan_batch


@dataclass(frozen=True)
class PreparedRun:
    """A run that may start: everything about it is checked, and nothing is written yet."""

    run: RunDir
    config: RunConfig
    batch_plan: BatchPlan
    submission: Submission
    samples: str  # the text of dataset.jsonl
    problems: list[str]  # what is wrong with the samples that are left out

    @property
    def total_steps(self) -> int:
        return solve_length(self.config, self.batch_plan.batch, self.submission.dataset_size).steps

    def write(self) -> None:
        """Write what all attempts of the run share; what people asked of it before is over."""
        try:
            self.run.path.mkdir(parents=True, exist_ok=True)
            write_atomic(self.run.dataset, self.samples)
            write_atomic(self.run.config, dump_config(self.config))
            self.submission.write(self.run)
            clear_requests(self.run)
        except OSError as error:
            cure = "name another folder with runs"
            raise UserError(f"{self.run.path}: cannot be written ({error.strerror}); {cure}") from None


def prepare_run(config: RunConfig, shape: Shape | None = None) -> PreparedRun:
    """The run of `config`, on `shape` or the config's own. Raises UserError; writes nothing."""
    run = RunDir(Path(config.runs, config.name))
    batch_plan = plan_batch(run, config, shape)
    folder = Path(config.data.images)
    listing = check_images(folder, list_samples(folder))
    samples = select_samples(config.data, listing)
    lines = format_samples(samples)
    model = str(resolve_model(config.model))
    check_objective(config, Path(model))
    submission = Submission(model, len(samples), digest_samples(lines), _content(config, model, digest_samples(lines)))
    ready = PreparedRun(run, config, batch_plan, submission, lines, listing.problems)
    check_same_run(ready)
    return ready


def _content(config: RunConfig, model: str, dataset_digest: str) -> str:
    """A digest of all that decides what comes of a run. Its name, its place and its shape do not."""
    decides = config.model_copy(update={"name": "", "runs": "", "model": model, "cluster": type(config.cluster)()})
    return sha256("\0".join([dump_config(decides), read_code_version().digest, dataset_digest]).encode()).hexdigest()


def is_finished(ready: PreparedRun) -> bool:
    """Whether the run was trained to the end that its config asks for."""
    ends = [end for attempt in ready.run.attempts() if (end := End.read(attempt)) and end.reason == "finished"]
    return bool(ends) and ends[-1].step >= ready.total_steps


def check_same_run(ready: PreparedRun) -> None:
    """A name is a run's id. A resume may change its shape, its length and its rates, not what it learns from.

    Raises UserError with the differences.
    """
    run, config = ready.run, ready.config
    if not run.config.is_file() or not run.attempts():
        return
    before = load_config(run.config)
    changed = [
        f"{name}: {old} → {new}"
        for name, old, new in zip(_FIXED, _fixed(before), _fixed(config), strict=True)
        if old != new
    ]
    last = AttemptPlan.read(run.attempts()[-1])
    if last.batch_plan.batch != ready.batch_plan.batch:
        changed.append(f"batch: {last.batch_plan.batch} → {ready.batch_plan.batch}")
    if last.dataset_digest != ready.submission.dataset_digest:
        changed.append(f"the samples in {config.data.images}")
    if changed:
        listed = "\n  ".join(changed)
        cure = f"give this one another name; with --fork {run.path} it starts from that run's weights"
        raise UserError(f"{run.path} holds another run:\n  {listed}\n{cure}")
    there, total = checkpoints.list_checkpoints(run), ready.total_steps
    if there and there[-1].step > total:
        raise UserError(f"{run.path}: step {there[-1].step} is done and {total} are asked for; ask for more")


_FIXED = ("model", "seed", "prediction", "precision", "ema", "resolution", "crop", "flip", "caption_dropout")


def _fixed(config: RunConfig) -> tuple[object, ...]:
    """What makes a run this run, beside its batch and dataset, in the order of _FIXED."""
    data = config.data
    own = (config.model, config.seed, config.prediction, config.precision, config.ema is not None)
    return (*own, data.resolution, data.crop, data.flip, data.caption_dropout)


def threads_per_rank(ranks: int) -> int:
    """An equal share of this machine's cores, unless OMP_NUM_THREADS says otherwise."""
    return int(os.environ.get("OMP_NUM_THREADS") or max(1, len(os.sched_getaffinity(0)) // ranks))
