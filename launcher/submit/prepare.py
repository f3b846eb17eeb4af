"""From a config to an attempt that is ready to start: everything is checked first, then everything is written."""

import json
import os
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from configs.changes import select_values
from configs.errors import UserError
from configs.model_folder import find_commit_name, read_pipeline_class
from configs.objective import check_objective
from configs.pipelines import check_told
from configs.reading.load import dump_config, load_config
from configs.schema import RunConfig
from configs.solve.batch import BatchPlan
from configs.solve.length import count_epoch, solve_length
from configs.solve.model_size import read_model_size
from configs.solve.settle import check_precision, settle_memory
from launcher.data.encodings import check_encodings_room
from launcher.same_run import describe_cure, describe_excess, list_changes, list_meanings
from launcher.submit.inputs import RunInputs
from store.checkpoint import checkpoints
from store.dataset.identity import identify_dataset
from store.dataset.kept_index import KeptIndex
from store.dataset.run_index import place_run_index
from store.files import write_atomic
from store.run.attempt_plan import AttemptPlan
from store.run.end import End
from store.run.run_dir import RunDir
from store.run.submission import Submission, plan_batch, settle_run_precision


@dataclass(frozen=True)
class PreparedRun:
    """A run that may start: everything about it is checked, and nothing is written yet."""

    run: RunDir
    config: RunConfig
    batch_plan: BatchPlan
    submission: Submission
    total_steps: int
    dataset: KeptIndex

    def write(self) -> None:
        """Write what all attempts of the run share; what people asked of it before is over."""
        try:
            self.run.path.mkdir(parents=True, exist_ok=True)
            place_run_index(self.run, self.dataset)
            write_atomic(self.run.config_path, dump_config(self.config))
            self.submission.write(self.run.submission_path)
            for request in (self.run.stop_request_path, self.run.save_request_path):
                request.unlink(missing_ok=True)
        except OSError as error:
            cure = "name another folder with runs"
            raise UserError(f"{self.run.path}: cannot be written ({error.strerror}); {cure}") from None


def prepare_run(
    config: RunConfig, inputs: RunInputs, batch_plan: BatchPlan | None = None, *, only_encode: bool = False
) -> PreparedRun:
    """The run of `config`, with `batch_plan` or the one of its own shape; writes nothing but
    the index of the dataset, which later commands use.

    `inputs`: what the runs of one command have in common; `only_encode`: the run's attempts end once their data is in
    the cache of encodings. Raises UserError where the model, the batch or the samples
    are wrong, or the run's folder holds another run.
    """
    run = RunDir.for_config(config)
    config = _keep_revision(config, run)
    commit = inputs.check_model(config)  # first: images take minutes to look at, and a whole model hours to fetch
    config = config.model_copy(update={"revision": commit})
    batch_plan = batch_plan or plan_batch(run, config)
    config = config.model_copy(update={"batch": batch_plan.batch})  # another shape must not change it
    config = settle_run_precision(run, config, inputs.hardware)[0]
    check_precision(config.precision, inputs.hardware.compute_capability)
    config = _keep_commits(config, run, inputs)
    dataset = inputs.index_dataset(config)
    index = dataset.index
    total_steps = solve_length(config, batch_plan.batch, count_epoch(config.data, index.source_sizes)).steps
    model = inputs.resolve_model(config)
    check_objective(config, Path(model))
    check_told(config, read_pipeline_class(Path(model, "model_index.json")))
    batch_plan = settle_memory(config, batch_plan, inputs.hardware, read_model_size(model)).batch_plan
    digest = identify_dataset(config.data, index)
    meanings = list_meanings(config, model, digest, batch_plan, total_steps)
    content = _digest_content(config, meanings, inputs.code_digest)
    check_encodings_room(config, index, Path(model), inputs.hardware)
    sizes = index.source_sizes
    submission = Submission(model, len(index), digest, content, inputs.hardware, sizes, only_encode)
    ready = PreparedRun(run, config, batch_plan, submission, total_steps, dataset)
    _check_same_run(ready)
    return ready


def _keep_revision(config: RunConfig, run: RunDir) -> RunConfig:
    """`config` with the commit of its model on the hub that the run began with, where it names no revision."""
    if config.revision is not None or os.path.isabs(config.model) or not run.config_path.is_file():
        return config
    begun, attempts = load_config(run.config_path), run.attempts()
    if begun.model != config.model:
        return config
    revision = begun.revision
    if revision is None and attempts:  # earlier versions kept it only as the folder's name
        revision = find_commit_name(Path(AttemptPlan.read(attempts[-1].plan_path).model_folder))
    return config.model_copy(update={"revision": revision})


def _keep_commits(config: RunConfig, run: RunDir, inputs: RunInputs) -> RunConfig:
    """`config` with the commits of its data sets on the hub: those that the run began with, whatever came since."""
    sources = config.data.sources or []
    if all(source.hub is None or source.revision is not None for source in sources):
        return config
    begun = load_config(run.config_path).data.listed_sources if run.config_path.is_file() else []
    known = {source.hub: source.revision for source in begun}
    kept = []
    for source in sources:
        if source.hub is not None and source.revision is None:
            source = source.model_copy(update={"revision": known.get(source.hub) or inputs.find_commit(source)})
        kept.append(source)
    return config.model_copy(update={"data": config.data.model_copy(update={"sources": kept})})


def _digest_content(config: RunConfig, meanings: dict[str, object], code_digest: str) -> str:
    """A digest of all that decides what comes of a run. Its name, its place and its shape do not."""
    values = select_values(config, {"run", "result"}, meanings)
    return sha256(json.dumps([values, code_digest], sort_keys=True).encode()).hexdigest()


def is_finished(ready: PreparedRun) -> bool:
    """Whether the run was trained to the end that its config asks for."""
    ends = [End.read_if_written(attempt.end_path) for attempt in ready.run.attempts()]
    finished = [end for end in ends if end is not None and end.reason == "finished"]
    return bool(finished) and finished[-1].step >= ready.total_steps


def _check_same_run(ready: PreparedRun) -> None:
    """Raises UserError where the run's folder holds another run, with the differences, or a longer one."""
    run, submission = ready.run, ready.submission
    changes = list_changes(
        run, ready.config, ready.batch_plan, ready.total_steps, submission.model_folder, submission.dataset_digest
    )
    if changes:
        listed = "\n  ".join(changes)
        raise UserError(f"{run.path} holds another run:\n  {listed}\n{describe_cure(run)}")
    saved = checkpoints.list_checkpoints(run)
    excess = describe_excess(run, saved[-1].step if saved else None, ready.total_steps)
    if excess is not None:
        raise UserError(excess)
