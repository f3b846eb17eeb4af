"""`lockstep export`: started as a process of its own, because it needs torch and this package does not."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from configs.errors import LockstepError, UserError
from configs.reading.load import load_config
from configs.schema import RunConfig
from configs.solve.hardware import Hardware
from launcher.hub.push import open_repo, push_export, render_push_command
from launcher.run_lock import hold_run
from launcher.submit.inputs import RunInputs
from launcher.submit.prepare import prepare_run
from launcher.torch_part import run_torch_part
from store.checkpoint.checkpoints import find_checkpoint
from store.run.records import ForkOrigin
from store.run.run_dir import RunDir
from store.run.submission import Submission


@dataclass(frozen=True)
class ExportRequest:
    """What is written, and of which checkpoint; None: the newest, and what the config says. At least one of `out`, a
    folder, and `file`, a .safetensors file."""

    step: int | None = None
    weights: str | None = None  # ema or raw
    dtype: str | None = None
    out: str | None = None
    file: str | None = None
    merged: bool = False  # of a run that trains adapters: a whole pipeline, with them merged into its UNet

    @property
    def targets(self) -> list[str]:
        """What is written."""
        return [target for target in (self.out, self.file) if target is not None]


def run_export(run: RunDir, request: ExportRequest) -> int:
    """Write what was requested. Returns the exit code: what is wrong is printed by the process that exports."""
    options = []
    for key, value in dataclasses.asdict(request).items():
        if value is True:
            options.append(f"--{key}")
        elif value is not None and value is not False:
            options += [f"--{key}", value]
    return run_torch_part("train.checkpoint.export", run.path, *options, offline=True)


def export_and_push(run: RunDir, request: ExportRequest, repo: str) -> int:
    """Write what was requested, and then put it on the hub as `repo`, USER/NAME. Returns the exit code.

    Raises UserError where the hub refuses, as far as possible before anything is written; and where it does not answer,
    once all is written, with the commands that do it elsewhere.
    """
    address = open_repo(repo)
    exit_code = run_export(run, request)
    if exit_code:
        return exit_code
    exports = [Path(target).absolute() for target in request.targets]
    if address is None:
        commands = "\n".join(render_push_command(repo, export) for export in exports)
        raise UserError(f"--push {repo}: the hub does not answer from here; where it does:\n{commands}")
    for export in exports:
        push_export(repo, export)
    print(f"pushed to {address}")
    return exit_code


def fork_run(config: RunConfig, parent: str, hardware: Hardware) -> RunConfig:
    """`config` with the newest weights of the run in the folder `parent` for its base model, kept in the new run's own
    folder. `hardware`: that its ranks will compute on.

    Everything else is checked before anything is written. Raises UserError where the run was begun otherwise.
    """
    run, source = RunDir.for_config(config), RunDir.open(parent)
    if run.path == source.path:
        raise UserError(f"{parent}: is this run itself; a fork is a new run, so give it another name")
    forked = config.model_copy(
        update={"model": str(run.base_path), "revision": None, "variant": None, "pipeline_config": None}
    )
    origin = ForkOrigin.read_if_written(run.origin_path)
    if origin is not None:
        if origin.run != str(source.path):
            raise UserError(f"{run.path}: was forked from {origin.run}; give this one another name")
        return forked
    newest = find_checkpoint(source, None)
    begun = {"model": Submission.read(source.submission_path).model_folder, "revision": None}
    begun["variant"] = load_config(source.config_path).variant
    prepare_run(config.model_copy(update=begun), RunInputs(hardware))
    with hold_run(run):
        merged = load_config(source.config_path).lora is not None
        request = ExportRequest(newest.step, "raw", "fp32", out=str(run.base_path), merged=merged)
        exit_code = run_export(source, request)
        if exit_code:
            error = UserError if exit_code == UserError.exit_code else LockstepError
            raise error(f"{parent}: its weights could not be exported, so there is nothing to fork from")
        ForkOrigin(str(source.path), newest.path.name).write(run.origin_path)
    return forked
