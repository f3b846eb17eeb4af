"""What the job's script runs before and after srun, on the first node: `python -P -m lockstep slurm.job.batch_script`.

Only the batch shell requeues: a requeue from a rank was seen to bring a cancelled job back.
"""

import errno
import json
import os
import shlex
import stat
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import click

from configs.errors import LockstepError
from configs.reading.load import load_config
from configs.solve.batch import BatchPlan
from slurm.job.nodes import plan_for_nodes
from slurm.job.record import ARRAY, JobRecord
from slurm.query import queue, scontrol
from slurm.recovery.history import Outcome, read_outcomes
from slurm.recovery.requeue import Decision, decide_next, find_bad_nodes
from slurm.site import Site
from store.run import gpus
from store.run.end import FAILED, FINISHED, End
from store.run.records import Allocation
from store.run.run_dir import Attempt, RunDir
from store.run.submission import open_attempt, plan_batch

EXPIRY = 24 * 3600  # seconds after which a node that failed gets another chance
BLOCKED = ("env", "--block-signal=USR2", "--block-signal=TERM")  # before a rank listens, a notice must not kill it


@click.group()
def batch() -> None:
    """For the job's own script."""


@batch.command("which")
@click.argument("folder")
def choose_run(folder: str) -> None:
    """Print the run of this task of a job array, whose runs are listed in FOLDER."""
    runs = json.loads(Path(folder, ARRAY).read_text())
    print(runs[int(os.environ.get("SLURM_ARRAY_TASK_ID", 0))])


@batch.command("begin")
@click.argument("run_dir")
def begin_attempt(run_dir: str) -> None:
    """Open the next attempt on the largest part of this allocation that keeps the batch; print its shell variables."""
    run, job = RunDir.open(run_dir), scontrol.current_job_id()
    record = _claim_run(run, job)
    # SLURM requeues by itself after a node's death, so what was decided at the last end is decided here again, before
    # anything is opened: a run that is done must not start, and one that only fails must wait for people.
    history = read_outcomes(run, after=record.after_attempt)
    decision = decide_next(history)
    if decision.action == "complete":
        print("exit 0")
        return
    if decision.action == "hold":
        scontrol.hold_job(job, decision.reason)
        sys.exit(1)
    # Of the nodes that SLURM gave, those that failed lately are left out, and as many of the rest are taken as can
    # share the batch. Too few are no attempt: SLURM gave them before it was told whom to leave out.
    config = load_config(run.config_path)
    given = scontrol.expand_hostnames(os.environ["SLURM_JOB_NODELIST"])
    excluded_nodes = _find_nodes_to_exclude(run, history)
    usable = [node for node in given if node not in excluded_nodes]
    batch_plan = plan_for_nodes(config, plan_batch(run, config), len(usable))
    if batch_plan is None:
        scontrol.requeue_job(job, excluded_nodes)
        sys.exit(1)
    nodes = usable[: batch_plan.shape.nodes]
    if len(nodes) < len(given) and given[0] in nodes:  # this shell's own node cannot be given back
        scontrol.keep_nodes(job, nodes)
    script = _read_own(run.sbatch_path)
    output_path, output_size = _find_output()
    allocation = Allocation(
        job=job,
        nodes=nodes,
        time=time.time(),
        reason=decision.reason,
        excluded_nodes=excluded_nodes,
        deadline=queue.parse_timestamp(scontrol.query_job_fields(job).get("EndTime", "")),
        batch_host=given[0],
        output_path=output_path,
        output_size=output_size,
    )
    attempt = open_attempt(run, config, batch_plan, allocation)
    attempt.sbatch_path.write_bytes(script)
    _announce(attempt, job, nodes, "; ".join([decision.reason, *_describe_excluded(excluded_nodes)]))
    _print_variables(attempt, _attempt_variables(attempt, batch_plan, nodes, record.site))


@batch.command("end")
@click.argument("run_dir")
@click.argument("code", type=int)
def end_attempt(run_dir: str, code: int) -> None:
    """After the ranks: requeue, hold with the reason, or let the job end. CODE is srun's and decides nothing."""
    run, job = RunDir.open(run_dir), scontrol.current_job_id()
    history = read_outcomes(run, after=JobRecord.read(run.job_path).after_attempt)
    decision = decide_next(history)
    attempt = run.attempt(int(os.environ["LOCKSTEP_ATTEMPT"]))
    _log(attempt, f"srun answered {code}; {decision.action}: {decision.reason}")
    # Two things stand before the decision. A job that runs no more was cancelled, or its time is over: a requeue would
    # bring back what was to end. And a newer attempt means that this node was cut off, and the job is its successor's.
    runs_still = scontrol.query_job_fields(job).get("JobState") == "RUNNING"
    if runs_still and run.attempts()[-1].number == attempt.number:
        scontrol.set_comment(job, decision.reason)
        if decision.action == "requeue":
            scontrol.requeue_job(job, _find_nodes_to_exclude(run, history))
        elif decision.action == "hold":
            scontrol.hold_job(job, decision.reason)
        else:
            scontrol.forbid_requeue(job)
    sys.exit(_exit_code(attempt, decision))


def _claim_run(run: RunDir, job: str) -> JobRecord:
    """The run's job record, which names this job. Ends this process where the run belongs to another job."""
    record = JobRecord.read(run.job_path)
    if record.id is None:  # whoever submitted it was killed before it could
        record = replace(record, id=job)
        record.write(run.job_path)
    if record.id != job:
        print(f"lockstep: the run belongs to job {record.id} now", file=sys.stderr)
        sys.exit(1)
    return record


def _exit_code(attempt: Attempt, decision: Decision) -> int:
    """What SLURM sees: a stop that people asked for is no failure."""
    if decision.action == "complete":
        return FINISHED
    ended = End.read_if_written(attempt.end_path)
    return ended.exit_code if ended else FAILED


def _find_nodes_to_exclude(run: RunDir, history: list[Outcome]) -> dict[str, str]:
    """Nodes to leave out, and why: those that failed lately, if the cluster can do without them."""
    bad = find_bad_nodes([outcome for outcome in history if _is_recent(run, outcome)])
    return bad if bad and scontrol.can_run_without(run.sbatch_path, bad) else {}


def _read_own(path: Path) -> bytes:
    """A file of ours, to be copied to where others may read it. Raises LockstepError for anything else that lies there,
    such as a link to a file of ours that nobody else is to read."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise LockstepError(f"{path}: is a link to {os.readlink(path)}, not the job's script; remove it") from None
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
            raise LockstepError(f"{path}: is another user's, or no file, and not the job's script; remove it")
        return file.read()


def _print_variables(attempt: Attempt, variables: dict[str, str]) -> None:
    """For the job's script, which evaluates what is printed here."""
    for name, value in variables.items():
        print(f"export {name}={shlex.quote(value)}")
    print(f"exec >>{shlex.quote(str(attempt.launcher_log_path))} 2>&1")  # what srun says belongs to this attempt


def _find_output() -> tuple[str | None, int]:
    """The job's output, which all attempts share, and where this attempt's part of it starts."""
    path = Path(os.readlink("/proc/self/fd/2"))
    return (str(path), path.stat().st_size) if path.is_file() else (None, 0)


def _is_recent(run: RunDir, outcome: Outcome) -> bool:
    """Whether the attempt is so young that its node is still suspected."""
    allocation = Allocation.read_if_written(run.attempt(outcome.attempt).allocation_path)
    return allocation is not None and time.time() - allocation.time < EXPIRY


def _attempt_variables(attempt: Attempt, batch_plan: BatchPlan, nodes: list[str], site: Site) -> dict[str, str]:
    """What the script's srun line and the ranks read."""
    shape = batch_plan.shape
    srun = [f"--nodes={shape.nodes}", f"--ntasks={shape.world_size}", f"--nodelist={','.join(nodes)}"]
    if subprocess.run([*BLOCKED, "true"], check=False, capture_output=True).returncode == 0:  # coreutils ≥ 8.31
        srun += BLOCKED
    variables = {"LOCKSTEP_ATTEMPT": str(attempt.number), "LOCKSTEP_SRUN": " ".join(srun)}
    variables["OMP_NUM_THREADS"] = str(site.cpus_per_rank)
    if gpus.GPUS_VARIABLE not in os.environ:  # a test cluster's site, whose GPUs are made up, sets it before
        variables[gpus.GPUS_VARIABLE] = "0" if site.gpus == "none" else "1"
    return variables | ({"LOCKSTEP_INTERFACE": site.interface} if site.interface else {})


def _describe_excluded(excluded: dict[str, str]) -> list[str]:
    return [f"without {node}, for a day: {reason}" for node, reason in excluded.items()]


def _announce(attempt: Attempt, job: str, nodes: list[str], reason: str) -> None:
    """Why there is this attempt: in the job's comment, and in its log."""
    scontrol.set_comment(job, f"attempt {attempt.number}: {reason}")
    _log(attempt, f"on {', '.join(nodes)}: {reason}")


def _log(attempt: Attempt, text: str) -> None:
    with open(attempt.launcher_log_path, "a", encoding="utf-8") as log:
        print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} attempt {attempt.number}: {text}", file=log)


if __name__ == "__main__":
    try:
        batch(prog_name="python -P -m lockstep slurm.job.batch_script")
    except LockstepError as error:
        sys.exit(f"lockstep: {error}")
