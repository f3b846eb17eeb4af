"""What is asked of SLURM: a job's script, made once, and then shown, tested, kept and queued as it is.

The only file that knows submitit. The script comes from its renderer, which is private, so that `plan` can show the
same bytes on a machine without SLURM; a golden test watches it. sbatch is called here, because submitit takes any
"job 1" that a site's wrapper prints for the job's id.
"""

import os
import re
import shlex
import stat
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from submitit.helpers import clean_env
from submitit.slurm.slurm import _make_sbatch_string

from configs.errors import LockstepError, UserError
from configs.scalars import NodeRange
from configs.schema import RunConfig
from configs.solve.batch import BatchPlan
from slurm.job.doctor_job import LEAD, MINUTES, SIGNAL
from slurm.job.nodes import nodes_to_request
from slurm.job.record import ARRAY
from slurm.query import queue
from slurm.query.scontrol import AWAY
from slurm.site import Site
from store.files import PRIVATE, own_folder, write_atomic, write_json
from store.run.run_dir import RunDir


@dataclass(frozen=True)
class JobTerms:
    """What the job of a run asks of SLURM. Runs with the same terms can be the tasks of one job array."""

    nodes: NodeRange
    ranks_per_node: int
    time_limit: int | None  # seconds; None: the partition's
    notice_seconds: float  # before the end at which the ranks are told
    site: Site

    @classmethod
    def of_run(cls, config: RunConfig, batch_plan: BatchPlan, site: Site) -> "JobTerms":
        """`batch_plan` is the config's own, on the fewest nodes."""
        nodes = nodes_to_request(config, batch_plan)
        limit = config.cluster.time or site.max_time
        return cls(nodes, batch_plan.shape.gpus_per_node, limit, config.checkpoint.notice_seconds, site)

    def parameters(self) -> dict[str, Any]:
        """As submitit takes them. Ranks are counted by srun's own options: a node range with sbatch's
        --ntasks-per-node was given fewer nodes than were free."""
        cpus = self.ranks_per_node * self.site.cpus_per_rank
        return {
            **site_parameters(self.site, self.ranks_per_node),
            "time": -(-self.time_limit // 60) if self.time_limit else None,  # minutes
            "signal_delay_s": round(self.notice_seconds),
            "additional_parameters": {"nodes": str(self.nodes), "mincpus": cpus, "requeue": True},
        }

    def __str__(self) -> str:
        partition = f"partition {self.site.partition}" if self.site.partition else "the default partition"
        return f"{self.nodes} nodes × {self.ranks_per_node} ranks in {partition}"


@dataclass(frozen=True)
class SbatchRequest:
    """One job, or one job array, as sbatch gets it."""

    folder: Path  # where the submitted script lies, and the job's output
    text: str  # the script, byte for byte
    size: str  # what it asks for, should SLURM refuse it
    runs: tuple[RunDir, ...] = ()  # that it trains; more than one are the tasks of an array

    def test(self) -> str:
        """Ask SLURM without queueing anything, and answer when the job is expected to start. Raises UserError where
        SLURM refuses it."""
        with _as_outside_jobs():
            answer = _sbatch("--test-only", script=self.text)
        message = " ".join(line.removeprefix("sbatch: ") for line in answer.stderr.splitlines())
        if answer.returncode:
            cure = "correct cluster or the site profile; sinfo shows what there is"
            raise UserError(f"cluster: SLURM refuses {self.size}: {message.removeprefix('error: ')}; {cure}")
        start = re.search(r"to start at (\S+)", message)
        return f"expected to start at {start[1].replace('T', ' ')}" if start else message

    def submit(self) -> list[str]:
        """Queue it, and answer the job's id; of an array those of its tasks, in the order of `runs`.

        Raises UserError where SLURM refuses it, LockstepError where nobody tells whether there is a job, or which.
        """
        if len(self.runs) > 1:
            write_json(self.folder / ARRAY, [str(run.path) for run in self.runs])
        for run in self.runs:
            write_atomic(run.sbatch_path, self.text)
        job = _queue(self.folder, self.text)
        return [f"{job}_{task}" for task in range(len(self.runs))] if len(self.runs) > 1 else [job]


def request_run(run: RunDir, name: str, terms: JobTerms) -> SbatchRequest:
    """The one job that trains `run` to its end."""
    text = _make_sbatch_string(
        command=_rank_command(terms.site),
        folder=run.slurm_path,
        job_name=name,
        setup=_setup(_quoted(run.path), terms.site),
        teardown=_teardown(),
        **terms.parameters(),
    )
    return SbatchRequest(run.slurm_path, text, str(terms), (run,))


def request_array(folder: Path, runs: Sequence[RunDir], name: str, terms: JobTerms) -> SbatchRequest:
    """A job array with a task for each of `runs`, which finds its run in `folder`."""
    which = f"$({_quoted(sys.executable)} -P -m lockstep slurm.job.batch_script which {_quoted(folder)})"
    text = _make_sbatch_string(
        command=_rank_command(terms.site),
        folder=folder,
        job_name=name,
        map_count=len(runs),
        setup=_setup(which, terms.site),
        teardown=_teardown(),
        **terms.parameters(),
    )
    return SbatchRequest(folder, text, str(terms), tuple(runs))


def request_doctor_job(folder: Path, site: Site, ranks: int) -> SbatchRequest:
    """The job of `lockstep doctor` (see slurm/job/doctor_job.py): `ranks` ranks on a node, with the options that a
    run's job has."""
    python = f"--nodes=1 --ntasks={ranks} {shlex.quote(sys.executable)}"  # behind srun and its options
    command = f"{python} -P -m lockstep slurm.job.doctor_job {_quoted(folder)}"
    once = f'[ "${{SLURM_RESTART_COUNT:-0}}" -gt 0 ] || [ ! -e {_quoted(folder / SIGNAL)} ]'
    text = _make_sbatch_string(
        command=command,
        folder=folder,
        job_name="lockstep-doctor",
        time=MINUTES,
        signal_delay_s=LEAD,
        setup=["export PYTHONSAFEPATH=1"],
        teardown=[f"{once} || scontrol requeue $SLURM_JOB_ID"],
        additional_parameters={"nodes": "1", "mincpus": ranks * site.cpus_per_rank, "requeue": True},
        **site_parameters(site, ranks),
    )
    return SbatchRequest(folder, text, "1 node")


def site_parameters(site: Site, ranks: int) -> dict[str, Any]:
    """What the site wants of every job, with `ranks` ranks on a node."""
    options: dict[str, Any] = {
        "partition": site.partition,
        "account": site.account,
        "qos": site.qos,
        "constraint": site.constraint,
        "mem": site.memory_per_node,
        "wckey": None,
        "stderr_to_stdout": True,
        "srun_args": _srun_arguments(site, ranks),
    }
    if site.gpus == "gres":
        options["gres"] = f"gpu:{ranks}"
    elif site.gpus == "gpus-per-node":
        options["gpus_per_node"] = ranks
    return options


def _queue(folder: Path, script: str) -> str:
    """Queue `script` from a file of its own in `folder`, by which its job can be told in the queue whatever a site's
    wrapper of sbatch prints. The job's id, of an array the whole array's.

    Raises as `SbatchRequest.submit` does.
    """
    file = folder / f"submission-{uuid4().hex}.sh"
    write_atomic(file, script)
    with _as_outside_jobs():
        answer = _sbatch("--parsable", str(file))
        job = queue.find_job_by_script(file)
    numbers = re.findall(r"^(\d+)(?:;\S+)?\s*$", answer.stdout, re.MULTILINE)
    if job:
        return job
    if answer.returncode == 0 and len(numbers) == 1:
        return str(numbers[0])
    message = " ".join(f"{answer.stderr}\n{answer.stdout}".split())
    away = AWAY.search(message)  # a controller that is too busy to answer has often taken the job, and shows it later
    if answer.returncode and job == "" and not away:
        raise UserError(f"SLURM refuses the job: {message}")
    raise LockstepError(
        f"sbatch does not tell the job's id ({message or 'it printed nothing'}), and squeue does not show it: it may "
        f"be queued all the same, from {file}; look with squeue --me, or submit again later, which finds it where it is"
    )


def _sbatch(*words: str, script: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(["sbatch", *words], input=script, capture_output=True, text=True, check=False)


@contextmanager
def _as_outside_jobs() -> Iterator[None]:
    """Without the SLURM_* variables of a job we may be in, which sbatch takes for options, and without our own ones,
    which it hands on to the new job; where SLURM is stays."""
    slurm_conf = os.environ.get("SLURM_CONF")
    with clean_env([name for name in os.environ if name.startswith("LOCKSTEP_")]):
        if slurm_conf is not None:
            os.environ["SLURM_CONF"] = slurm_conf
        yield


def _setup(run: str, site: Site) -> list[str]:
    """The script's part before the ranks: the site's lines, then what `slurm.job.batch_script begin` decides.
    `run` is the shell's word for the run's folder."""
    begin = f'{_quoted(sys.executable)} -P -m lockstep slurm.job.batch_script begin "$run"'
    site_lines = ["set -e", *site.setup, "set +e"] if site.setup else []
    begin_lines = ["trap '' TERM", f"run={run}", f"attempt=$({begin}) || exit $?", "trap - TERM", 'eval "$attempt"']
    return ["export PYTHONSAFEPATH=1", *site_lines, *begin_lines]


def _teardown() -> list[str]:
    """The batch shell's part after the ranks. A requeue ends this very shell with SIGTERM, in the middle of it."""
    return [
        "code=$?",
        "trap '' TERM",
        f'{_quoted(sys.executable)} -P -m lockstep slurm.job.batch_script end "$run" $code',
        "exit $?",
    ]


def _srun_arguments(site: Site, ranks: int) -> list[str]:
    arguments = ["--kill-on-bad-exit=1", "--wait=60", f"--ntasks-per-node={ranks}"]
    arguments += [f"--cpus-per-task={site.cpus_per_rank}"]  # since 22.05 srun does not take it from sbatch
    if site.gpus != "none":  # NCCL wants every GPU of the node in sight of every rank
        arguments += ["--gpu-bind=none"]
    if site.container and site.container.kind == "pyxis":
        mounts = ",".join(f"{folder}:{folder}" for folder in site.container.mounts)
        arguments += [f"--container-image={site.container.image}"] + (
            [f"--container-mounts={mounts}"] if mounts else []
        )
    return arguments


def make_output_folder(folder: Path) -> None:
    """Make the folder of a job's output, before anything of the job is written. Nobody else may write in it, whatever
    the umask: SLURM follows the links that it finds there, under names that are easily guessed. Raises UserError where
    it is not ours alone."""
    cure = "remove it, or name another folder with runs"
    try:
        own_folder(folder, PRIVATE, cure)
        folder.chmod(stat.S_IMODE(folder.stat().st_mode) & ~0o022)
    except OSError as error:
        raise UserError(f"{folder}: cannot be made yours alone to write in ({error.strerror}); {cure}") from None
    for entry in os.scandir(folder):  # which others could make until now
        if entry.stat(follow_symlinks=False).st_uid != os.geteuid():
            raise UserError(f"{entry.path}: is another user's, and SLURM may write your job's output to it; remove it")


def _rank_command(site: Site) -> str:
    """The ranks' command; the batch shell knows the run's folder as `run`. Not submitit's own, which unpickles at every
    start what lies in the run's folder, where a colleague may have put a pickle of theirs."""
    return f'{_python(site)} -u -P -m lockstep slurm.job.rank_entry "$run"'


def _python(site: Site) -> str:
    """The command of a rank, behind what `slurm.job.batch_script begin` puts there: srun's options for this attempt's
    nodes, and `env` to block the notice's signals until the rank is ready for them."""
    words = [sys.executable]
    if site.container and site.container.kind == "apptainer":
        mounts = [word for folder in site.container.mounts for word in ("--bind", folder)]
        words = ["apptainer", "exec", "--nv", *mounts, site.container.image, *words]
    return f"$LOCKSTEP_SRUN {shlex.join(words)}"


def _quoted(word: str | Path) -> str:
    return shlex.quote(str(word))
