"""What is asked of SLURM: one job that starts every attempt of a run, as the text that sbatch gets.

The only file that knows submitit. `text` uses its renderer, which is private, so that `plan` can show the same bytes on
a machine without SLURM; a golden test watches it.
"""

import os
import re
import shlex
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from submitit.core.utils import FailedJobError, FailedSubmissionError
from submitit.helpers import clean_env
from submitit.slurm.slurm import SlurmExecutor, _make_sbatch_string

from configs.errors import LockstepError, UserError
from configs.run_dir import PRIVATE, RunDir, own_folder, write_atomic, write_json
from configs.schema import RunConfig
from slurm.entry import run_rank
from slurm.rehearsal import LEAD, MINUTES, SIGNAL
from slurm.shape import asked
from slurm.site import Site


def text(run: RunDir, config: RunConfig, site: Site) -> str:
    """The batch script, byte for byte as `submit` sends it."""
    return _make_sbatch_string(command=_command(site), folder=run.slurm, **parameters(run, config, site))


def parameters(run: RunDir, config: RunConfig, site: Site) -> dict[str, Any]:
    """What submitit gets. Ranks are counted by srun's own options: a node range with sbatch's --ntasks-per-node was
    given fewer nodes than were free."""
    nodes, ranks = asked(config)
    limit = config.cluster.time or site.max_time
    return {
        **of_site(site, ranks),
        "job_name": config.name,
        "time": -(-limit // 60) if limit else None,  # minutes
        "signal_delay_s": round(config.checkpoint.notice_seconds),
        "setup": _setup(_quoted(run.path), site),
        "teardown": _teardown(),
        "additional_parameters": {"nodes": str(nodes), "mincpus": ranks * site.cpus_per_rank, "requeue": True},
    }


def rehearsal(folder: Path, site: Site) -> str:
    """The script of `lockstep doctor`'s job (see slurm/rehearsal.py), with the words that a run's job has."""
    command = f"{shlex.quote(sys.executable)} -P -m slurm.rehearsal {_quoted(folder)}"
    once = f'[ "${{SLURM_RESTART_COUNT:-0}}" -gt 0 ] || [ ! -e {_quoted(folder / SIGNAL)} ]'
    return _make_sbatch_string(
        command=command,
        folder=folder,
        job_name="lockstep-doctor",
        time=MINUTES,
        signal_delay_s=LEAD,
        setup=["export PYTHONSAFEPATH=1"],
        teardown=[f"{once} || scontrol requeue $SLURM_JOB_ID"],
        additional_parameters={"nodes": "1", "mincpus": site.cpus_per_rank, "requeue": True},
        **of_site(site, 1),
    )


def of_site(site: Site, ranks: int) -> dict[str, Any]:
    """What the site wants of every job, with `ranks` ranks on a node."""
    wanted: dict[str, Any] = {
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
        wanted["gres"] = f"gpu:{ranks}"
    elif site.gpus == "gpus-per-node":
        wanted["gpus_per_node"] = ranks
    return wanted


ARRAY = "runs.json"  # of a job array: the folders of its runs, in the order of their tasks
_NO_CLUSTER = "configuration source|[Uu]nable to contact slurm controller"


def check(run: RunDir, config: RunConfig, site: Site) -> str:
    """What SLURM says of the job without queueing it: when it is to start. Raises UserError where it refuses."""
    answer = _sbatch("--test-only", text(run, config, site))
    said = " ".join(line.removeprefix("sbatch: ") for line in answer.stderr.splitlines())
    if answer.returncode and re.search(_NO_CLUSTER, said):
        raise UserError(
            "no SLURM cluster answers on this machine: submit from a login node, or train here with --local"
        )
    if answer.returncode:
        nodes, ranks = asked(config)
        partition = f"partition {site.partition}" if site.partition else "the default partition"
        where = f"{nodes} nodes × {ranks} ranks in {partition}"
        cure = "correct cluster or the site profile; sinfo shows what there is"
        raise UserError(f"cluster: SLURM refuses {where}: {said.removeprefix('error: ')}; {cure}")
    start = re.search(r"to start at (\S+)", said)
    return f"expected to start at {start[1].replace('T', ' ')}" if start else said


def submit(run: RunDir, config: RunConfig, site: Site) -> str:
    """Queue the job and answer its id. Raises UserError where SLURM refuses it."""
    own_output(run.slurm)
    with _as_outside_jobs():
        executor = _Executor(run.slurm, site)
        executor.update_parameters(**parameters(run, config, site))
        try:
            return str(executor.submit(run_rank, str(run.path)).job_id)
        except (FailedJobError, FailedSubmissionError) as error:
            raise UserError(f"SLURM refuses the job: {error}") from None


def rehearse(folder: Path, site: Site) -> str:
    """Queue doctor's job and answer its id. Raises UserError where SLURM refuses it."""
    answer = _sbatch("--parsable", rehearsal(folder, site))
    if answer.returncode:
        raise UserError(f"SLURM refuses a job of this site: {answer.stderr.strip()}; correct the site profile")
    return answer.stdout.strip().partition(";")[0]


def _sbatch(option: str, script: str) -> subprocess.CompletedProcess[str]:
    with _as_outside_jobs():
        return subprocess.run(["sbatch", option], input=script, capture_output=True, text=True, check=False)


def submit_array(folder: Path, runs: list[RunDir], config: RunConfig, site: Site) -> list[str]:
    """Queue one job array with a task per run, all of the shape that `config` has, and answer their ids, in order.

    A task finds its run in `folder`. Raises UserError where SLURM refuses it.
    """
    own_output(folder)
    write_json(folder / ARRAY, [str(run.path) for run in runs])
    which = f"$({_quoted(sys.executable)} -P -m slurm.batch which {_quoted(folder)})"
    wanted = parameters(runs[0], config, site) | {"setup": _setup(which, site)}
    count = len(runs) if len(runs) > 1 else None  # of one, submitit makes a job like any other
    script = _make_sbatch_string(command=_command(site), folder=folder, map_count=count, **wanted)
    for run in runs:
        write_atomic(run.sbatch, script)
    with _as_outside_jobs():
        executor = _Executor(folder, site)
        executor.update_parameters(**wanted)
        try:
            jobs = executor.map_array(run_rank, [str(run.path) for run in runs])
        except (FailedJobError, FailedSubmissionError) as error:
            raise UserError(f"SLURM refuses the job array: {error}") from None
    return [str(job.job_id) for job in jobs]


@contextmanager
def _as_outside_jobs() -> Iterator[None]:
    """Without the SLURM_* variables of a job we may be in, which sbatch takes for options; where SLURM is stays."""
    where = os.environ.get("SLURM_CONF")
    with clean_env():
        if where is not None:
            os.environ["SLURM_CONF"] = where
        yield


def _setup(run: str, site: Site) -> list[str]:
    """The batch shell's part before the ranks: the site's lines, then what `slurm.batch begin` decides. `run` is the
    shell's word for the run's folder."""
    begin = f'{_quoted(sys.executable)} -P -m slurm.batch begin "$run"'
    site_lines = ["set -e", *site.setup, "set +e"] if site.setup else []
    begin_lines = ["trap '' TERM", f"run={run}", f"attempt=$({begin}) || exit $?", "trap - TERM", 'eval "$attempt"']
    return ["export PYTHONSAFEPATH=1", *site_lines, *begin_lines]


def _teardown() -> list[str]:
    """The batch shell's part after the ranks. A requeue ends this very shell with SIGTERM, in the middle of it."""
    return ["code=$?", "trap '' TERM", f'{_quoted(sys.executable)} -P -m slurm.batch end "$run" $code', "exit $?"]


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


class _Executor(SlurmExecutor):
    """submitit's, with our own command for the ranks: submitit's unpickles at every start what lies in the run's
    folder, and a colleague who may write there could put a pickle of theirs in its place."""

    def __init__(self, folder: Path, site: Site):
        super().__init__(folder)
        self._site = site

    @property
    def _submitit_command_str(self) -> str:
        return _command(self._site)


def own_output(folder: Path) -> None:
    """Make the folder of a job's output, in which nobody else may write, whatever the umask: SLURM follows the links
    that it finds there, under names that are easily guessed. Raises LockstepError where it is not ours."""
    own_folder(folder, PRIVATE, "remove it, or name another folder with runs")
    folder.chmod(stat.S_IMODE(folder.stat().st_mode) & ~0o022)
    for entry in os.scandir(folder):  # which others could make until now
        if entry.stat(follow_symlinks=False).st_uid != os.geteuid():
            raise LockstepError(
                f"{entry.path}: is another user's, and SLURM may write your job's output to it; remove it"
            )


def _command(site: Site) -> str:
    """The ranks' command; the batch shell knows the run's folder as `run`."""
    return f'{_python(site)} -u -P -m slurm.entry "$run"'


def _python(site: Site) -> str:
    """The command of a rank, behind what `slurm.batch begin` puts there: srun's options for the nodes of this attempt,
    and `env` to block the notice's signals until the rank is ready for them."""
    words = [sys.executable]
    if site.container and site.container.kind == "apptainer":
        mounts = [word for folder in site.container.mounts for word in ("--bind", folder)]
        words = ["apptainer", "exec", "--nv", *mounts, site.container.image, *words]
    return f"$LOCKSTEP_SRUN {shlex.join(words)}"


def _quoted(word: str | Path) -> str:
    return shlex.quote(str(word))
