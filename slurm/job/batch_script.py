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
from slurm.recovery.requeue import decide_next, find_bad_nodes
from slurm.site import Site
from store.run import gpus
from store.run.end import FAILED, FINISHED, End
from store.run.run_dir import Attempt, RunDir
from store.run.submission import open_attempt

EXPIRY = 24 * 3600  # seconds after which a node that failed gets another chance
BLOCKED = ("env", "--block-signal=USR2", "--block-signal=TERM")  # before a rank listens, a notice must not kill it


@click.group()
def batch() -> None:
    """For the job's own script."""


@batch.command()
@click.argument("folder")
def which(folder: str) -> None:
    """The run of this task of a job array, whose runs are listed in FOLDER."""
    runs = json.loads(Path(folder, ARRAY).read_text())
    print(runs[int(os.environ.get("SLURM_ARRAY_TASK_ID", 0))])


@batch.command()
@click.argument("run_dir")
def begin(run_dir: str) -> None:
    """Open the next attempt on the largest part of this allocation that keeps the batch; print its shell variables."""
    run, job = RunDir.open(run_dir), scontrol.current_job_id()
    config, record = load_config(run.config), JobRecord.read(run)
    if record.id not in (None, job):
        print(f"lockstep: the run belongs to job {record.id} now", file=sys.stderr)
        sys.exit(1)
    if record.id is None:  # whoever submitted it was killed before it could
        replace(record, id=job).write(run)
    history = read_outcomes(run, after=record.after_attempt)
    decision = decide_next(history)
    if decision.action == "complete":  # SLURM requeued it for a node that died after the end
        print("exit 0")
        return
    if decision.action == "hold":
        scontrol.hold_job(job, decision.reason)
        sys.exit(1)
    given = scontrol.expand_hostnames(os.environ["SLURM_JOB_NODELIST"])
    left_out = _bad_nodes(run, history)
    usable = [node for node in given if node not in left_out]
    batch_plan = plan_for_nodes(config, len(usable))
    if batch_plan is None:  # SLURM gave them before it was told, or by itself after a node's death
        scontrol.requeue_job(job, left_out)
        sys.exit(1)
    nodes = usable[: batch_plan.shape.nodes]
    if len(nodes) < len(given) and given[0] in nodes:  # this shell's own node cannot be given back
        scontrol.keep_nodes(job, nodes)
    over = queue.parse_timestamp(scontrol.query_job_fields(job).get("EndTime", ""))
    allocation = {"job": job, "nodes": nodes, "left_out": left_out, "time": time.time(), "because": decision.reason}
    allocation |= {"batch_host": given[0], "output": _output(), "time_is_over": over}
    script = _read_own(run.sbatch)
    attempt = open_attempt(run, config, batch_plan, allocation)
    attempt.sbatch.write_bytes(script)
    said = "; ".join([decision.reason, *(f"without {node}, for a day: {why}" for node, why in left_out.items())])
    scontrol.set_comment(job, f"attempt {attempt.number}: {said}")
    _log(attempt, f"on {', '.join(nodes)}: {said}")
    for name, value in _variables(attempt, batch_plan, nodes, record.site).items():
        print(f"export {name}={shlex.quote(value)}")
    print(f"exec >>{shlex.quote(str(attempt.launcher_log))} 2>&1")  # what srun says belongs to this attempt


@batch.command()
@click.argument("run_dir")
@click.argument("code", type=int)
def end(run_dir: str, code: int) -> None:
    """After the ranks: requeue, hold with the reason, or leave it at that. CODE is srun's and decides nothing."""
    run, job = RunDir.open(run_dir), scontrol.current_job_id()
    history = read_outcomes(run, after=JobRecord.read(run).after_attempt)
    decision = decide_next(history)
    attempt = run.attempt(int(os.environ["LOCKSTEP_ATTEMPT"]))
    _log(attempt, f"srun answered {code}; {decision.action}: {decision.reason}")
    ended = End.read(attempt)
    exit_code = ended.exit_code if ended else FAILED
    if decision.action == "complete":
        exit_code = FINISHED  # a stop that people asked for is no failure to SLURM
    if scontrol.query_job_fields(job).get("JobState") != "RUNNING":
        sys.exit(exit_code)  # cancelled, or its time is over: a requeue would bring back what was to end
    if run.attempts()[-1].number > attempt.number:  # this node was batch_plan off, and the job is its successor's now
        sys.exit(exit_code)
    scontrol.set_comment(job, decision.reason)
    if decision.action == "requeue":
        scontrol.requeue_job(job, _bad_nodes(run, history))
    elif decision.action == "hold":
        scontrol.hold_job(job, decision.reason)
    else:
        scontrol.forbid_requeue(job)
    sys.exit(exit_code)


def _bad_nodes(run: RunDir, history: list[Outcome]) -> dict[str, str]:
    """Nodes to leave out, and why: those that failed lately, if the cluster can do without them."""
    bad = find_bad_nodes([outcome for outcome in history if _recent(run, outcome)])
    return bad if bad and scontrol.can_run_without(run.sbatch, bad) else {}


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
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
            raise LockstepError(f"{path}: is another user's, or no file, and not the job's script; remove it")
        return file.read()


def _output() -> dict[str, object]:
    """The job's output, which all attempts share, and where this attempt's part of it starts."""
    path = Path(os.readlink("/proc/self/fd/2"))
    return {"path": str(path), "size": path.stat().st_size} if path.is_file() else {}


def _recent(run: RunDir, outcome: Outcome) -> bool:
    """Whether the attempt is so young that its node is still suspected."""
    record = run.attempt(outcome.attempt).nodes
    return record.is_file() and time.time() - float(json.loads(record.read_text())["time"]) < EXPIRY


def _variables(attempt: Attempt, batch_plan: BatchPlan, nodes: list[str], site: Site) -> dict[str, str]:
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


def _log(attempt: Attempt, text: str) -> None:
    with open(attempt.launcher_log, "a", encoding="utf-8") as log:
        print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} attempt {attempt.number}: {text}", file=log)


if __name__ == "__main__":
    try:
        batch(prog_name="python -P -m lockstep slurm.job.batch_script")
    except LockstepError as error:
        sys.exit(f"lockstep: {error}")
