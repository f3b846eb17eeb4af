"""`lockstep export`: started as a process of its own, because it needs torch and this package does not."""

import os
import subprocess
import sys
from dataclasses import dataclass

from configs.errors import LockstepError, UserError
from configs.reading.load import load_config
from configs.schema import RunConfig
from configs.solve.hardware import Hardware
from launcher.run_lock import hold_run
from launcher.submit.inputs import RunInputs
from launcher.submit.prepare import prepare_run
from store.checkpoint.checkpoints import find_checkpoint
from store.run.records import Record
from store.run.run_dir import RunDir
from store.run.submission import Submission


@dataclass(frozen=True)
class ForkOrigin(Record):
    """Whose weights a fork starts from."""

    run: str  # the parent's folder
    checkpoint: str


def run_export(run: RunDir, step: int | None, weights: str | None, out: str) -> int:
    """Write the checkpoint of `step` (None: the newest) as a pipeline folder `out`. Returns the exit code: what is
    wrong is printed by the process that exports."""
    command = [sys.executable, "-P", "-m", "lockstep", "train.checkpoint.export", str(run.path), "--out", out]
    if step is not None:
        command += ["--step", str(step)]
    if weights is not None:
        command += ["--weights", weights]
    quiet = {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, env=os.environ | quiet, check=False).returncode


def fork_run(config: RunConfig, parent: str, hardware: Hardware) -> RunConfig:
    """`config` with the newest weights of the run in the folder `parent` for its base model, kept in the new run's own
    folder. `hardware`: that its ranks will compute on.

    Everything else is checked before anything is written. Raises UserError where the run was begun otherwise.
    """
    run, source = RunDir.for_config(config), RunDir.open(parent)
    if run.path == source.path:
        raise UserError(f"{parent}: is this run itself; a fork is a new run, so give it another name")
    forked = config.model_copy(update={"model": str(run.base_path), "revision": None, "variant": None})
    origin_file = run.base_path / "origin.json"
    origin = ForkOrigin.read_if_written(origin_file)
    if origin is not None:
        if origin.run != str(source.path):
            raise UserError(f"{run.path}: was forked from {origin.run}; give this one another name")
        return forked
    newest = find_checkpoint(source, None)
    begun = {"model": Submission.read(source.submission_path).model_folder, "revision": None}
    begun["variant"] = load_config(source.config_path).variant
    prepare_run(config.model_copy(update=begun), RunInputs(hardware))
    with hold_run(run):
        exit_code = run_export(source, newest.step, "raw", str(run.base_path))
        if exit_code:
            error = UserError if exit_code == UserError.exit_code else LockstepError
            raise error(f"{parent}: its weights could not be exported, so there is nothing to fork from")
        ForkOrigin(str(source.path), newest.path.name).write(origin_file)
    return forked
