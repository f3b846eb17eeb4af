"""`submit`: everything is checked before anything is started, and a run that lives is not started twice."""

import shlex

from configs.errors import UserError
from configs.schema import RunConfig
from launcher.backend import Backend, BackendJob, find_backend_job
from launcher.run_lock import hold_run
from launcher.submit.inputs import RunInputs
from launcher.submit.prepare import PreparedRun, is_finished, prepare_run
from store.run.end import FINISHED, ON_NOTICE
from store.run.run_dir import RunDir
from store.run.submission import Submission


def start_run(config: RunConfig, backend: Backend, *, only_encode: bool = False) -> int:
    """Train `config` to its end there, unless it lives or is finished; with `only_encode`, encode its data and no more.
    Answers the exit code of contract 5.

    Raises UserError before anything is started, and what a run on this machine failed of.
    """
    backend.check_config(config)
    inputs = RunInputs(backend.find_hardware(config))
    prepared = prepare_run(
        config, inputs, backend.plan_batch(RunDir.for_config(config), config), only_encode=only_encode
    )
    reason, _ = check_job(prepared, backend)
    exit_code = FINISHED
    if reason is None:
        exit_code, reason = _start(prepared, backend)
    if reason:
        print(f"{config.name} {reason}")
    if reason and not is_finished(prepared):
        folder = shlex.quote(str(prepared.run.path))
        print(f"see it with: lockstep status {folder}\nfollow it with: lockstep logs {folder} -f")
    return exit_code


def _start(prepared: PreparedRun, backend: Backend) -> tuple[int, str]:
    """The exit code, and what a person is told after the run's name; nothing where they have seen the run's end."""
    [checked] = backend.check_runs([prepared])
    with hold_run(prepared.run) as lock:
        reason, held = check_job(prepared, backend)  # once more: another submit may have been quicker
        if reason is not None:
            return FINISHED, reason
        folder = prepared.run.path
        [job] = checked.submit([prepared], {folder: held.id} if held else {}, {folder: lock})
    if not job.alive:
        return FINISHED if job.state == "COMPLETED" else ON_NOTICE, ""
    note = f"\nnote: {checked.note}" if checked.note else ""
    return FINISHED, f"is {job.name}; {checked.start}{note}"


def check_job(prepared: PreparedRun, backend: Backend) -> tuple[str | None, BackendJob | None]:
    """Why the run is not to be started, for a person, if it is finished or lives; else None, and the job that has to be
    cancelled first, if one is held: whoever submits the run again has seen to that. One that trains on this machine
    has the run's lock.

    Raises UserError where the run lives elsewhere than `backend` would start it, LockstepError where nobody can tell.
    """
    only_encode = prepared.submission.only_encode
    if is_finished(prepared) and not only_encode:
        return f"is finished; its pipeline is {prepared.run.pipeline_path}", None
    active = find_backend_job(prepared.run, besides_lock=True)
    if active is None:
        return None, None
    owner, job = active
    if owner.name != backend.name:
        cure = f"cancel it first: lockstep cancel {shlex.quote(str(prepared.run.path))}"
        raise UserError(f"{prepared.run.path}: is {job.name} ({job.describe()}); {cure}")
    if job.held:
        return None, job
    submitted = Submission.read_if_written(prepared.run.submission_path)
    if not only_encode and submitted is not None and submitted.only_encode:
        cure = "submit it when that is done, or cancel it first"
        raise UserError(f"{prepared.run.path}: is {job.name}, which only encodes its data ({job.describe()}); {cure}")
    return f"is {job.name} already: {job.describe()}", None
