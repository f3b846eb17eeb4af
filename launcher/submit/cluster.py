"""`submit` on a cluster: everything is checked before anything is queued, and a run that lives is not queued twice."""

import shlex
import shutil
import time
from dataclasses import replace

from configs.errors import LockstepError, UserError
from configs.scalars import format_time
from configs.schema import RunConfig
from launcher.run_lock import hold_run
from launcher.submit.prepare import PreparedRun, is_finished, prepare_run
from slurm.job import request
from slurm.job.nodes import with_fixed_batch
from slurm.job.record import JobRecord, find_active_job
from slurm.query import queue
from slurm.query.partitions import check_time_limit, query_partition_rules, warn_of_cancelling
from slurm.query.survey import read_settings
from slurm.site import Site, load_site
from store.run.end import FINISHED
from store.run.run_dir import RunDir, write_atomic

_CANNOT_NAME = "%\\\n\r"  # sbatch reads them as patterns and line ends in the names of its output files


def render_sbatch(config: RunConfig) -> str:
    """What sbatch gets, byte for byte. Needs no cluster, no model and no images."""
    site = load_site(config.cluster.site)
    check_limits(config, site)
    return request.render_script(RunDir.for_config(config), config, site)


def submit_cluster(config: RunConfig) -> int:
    """Queue the one job that trains `config` to its end, unless it lives or is finished. Raises UserError before."""
    site = load_site(config.cluster.site)
    require_sbatch()
    check_limits(config, site)
    ready = prepare_run(with_fixed_batch(config))
    line, _ = check_job(ready)
    if line is None:
        warning = check_partition([ready.config], site)
        start = request.check_submission(ready.run, ready.config, site)
        with hold_run(ready.run):
            line, held = check_job(ready)  # once more: another submit may have been quicker
            if line is None:
                line = f"is job {_submit(ready, site, held)}; {start}" + (f"\nnote: {warning}" if warning else "")
    print(f"{config.name} {line}")
    if not is_finished(ready):
        run = shlex.quote(str(ready.run.path))
        print(f"see it with: lockstep status {run}\nfollow it with: lockstep logs {run} -f")
    return FINISHED


def check_job(ready: PreparedRun) -> tuple[str | None, queue.Job | None]:
    """Why the run is not to be queued, for a person, if it is finished or lives; else None, and the job that has to be
    cancelled first, if one is held: whoever submits the run again has seen to that.

    Raises LockstepError where nobody can tell whether it lives.
    """
    if is_finished(ready):
        return f"is trained to its end; its pipeline is {ready.run.pipeline}", None
    job = find_active_job(ready.run)
    if job is None or job.held:
        return None, job
    return f"is job {job.id} already: {queue.describe_job(job)}", None


def check_partition(configs: list[RunConfig], site: Site) -> str | None:
    """What whoever submits there has to know of the site's partition, if anything.

    Raises UserError where SLURM would never start one of the jobs, LockstepError where it does not answer.
    """
    rules = query_partition_rules()
    for config in configs:
        check_time_limit(rules, config.cluster.time or site.max_time, site)
    return warn_of_cancelling(rules, read_settings().get("PreemptType", ""), site)


def _submit(ready: PreparedRun, site: Site, held: queue.Job | None) -> str:
    request.make_output_folder(ready.run.slurm)
    if held is not None:
        cancel_held(ready.run, held)
    before = write_job_record(ready, site)
    write_atomic(ready.run.sbatch, request.render_script(ready.run, ready.config, site))
    job = request.submit_job(ready.run, ready.config, site)
    replace(before, id=job).write(ready.run)
    return job


def cancel_held(run: RunDir, held: queue.Job) -> None:
    """Take the run's job that is held out of the queue. Raises LockstepError where somebody has just released it."""
    queue.cancel_job(held.id, only_pending=True)
    job = find_active_job(run)
    if job is not None and not job.held:
        words = queue.describe_job(job)
        raise LockstepError(f"{run.path}: job {job.id} was released meanwhile, and is {words}; nothing was queued")


def write_job_record(ready: PreparedRun, site: Site) -> JobRecord:
    """Write all that a job reads, once no other one is in the queue. `job.json` says that one is being submitted,
    should we be killed before it is."""
    run = ready.run
    ready.write()
    newest = run.attempts()[-1].number if run.attempts() else 0
    record = JobRecord(None, site, newest, time.time())
    record.write(run)
    return record


def require_sbatch() -> None:
    if shutil.which("sbatch") is None:
        raise UserError("there is no sbatch on this machine: submit from a login node, or train here with --local")


def check_limits(config: RunConfig, site: Site) -> None:
    """What would only be found out in the queue, or never."""
    limit, notice = config.cluster.time or site.max_time, config.checkpoint.notice_seconds
    if config.cluster.time and site.max_time and config.cluster.time > site.max_time:
        asked, most = format_time(config.cluster.time), format_time(site.max_time)
        raise UserError(f"cluster.time: {asked} is more than the {most} that the site allows; write at most {most}")
    if limit and limit < 2 * notice:
        cure = f"write at least {format_time(round(2 * notice))}, or a shorter notice"
        raise UserError(
            f"cluster.time: {format_time(limit)} is less than twice checkpoint.notice_seconds ({notice:g}), so that "
            f"attempts would stop almost as soon as they start; {cure}"
        )
    path = str(RunDir.for_config(config).path)
    if found := sorted({character for character in path if character in _CANNOT_NAME}):
        listed = " and ".join(map(repr, found))
        raise UserError(f"runs: {path!r} holds {listed}, which sbatch cannot have in a path; name another folder")
