"""What the batch shell does beside a SLURM of shell scripts: what others left in the folder, and what people asked of
the job meanwhile."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from configs.errors import LockstepError
from configs.solve.batch import BatchPlan, Shape
from slurm.job.batch_script import batch
from slurm.job.record import JobRecord
from slurm.query import scontrol
from store.run.attempt_plan import AttemptPlan
from store.run.end import End
from tests.launcher.desk import Desk, begun


def shows(desk: Desk, state: str) -> None:
    """scontrol has job 7 in this state, and does what it is told."""
    desk.does("scontrol", f'case "$*" in *hostnames*) echo node1;; show*) echo "JobId=7 JobState={state}";; esac')


@pytest.fixture
def in_job(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> Desk:
    """The desk in the batch shell of job 7, which runs."""
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "node1")
    shows(desk, "RUNNING")
    return desk


def begin(path: Path) -> Result:
    return CliRunner().invoke(batch, ["begin", str(path)])


def test_a_script_that_is_a_link_is_not_copied(in_job: Desk) -> None:
    """To where the whole team reads it."""
    run, secret = in_job.submitted(), in_job.folder / "secret"
    secret.write_text("mine alone")
    run.slurm_path.mkdir()
    run.sbatch_path.symlink_to(secret)
    done = begin(run.path)
    assert not [
        path
        for path in run.path.rglob("*")
        if path.is_file() and "mine alone" in path.read_text("latin1") and not path.is_symlink()
    ]
    assert isinstance(done.exception, LockstepError), done
    assert f"{run.sbatch_path}: is a link" in str(done.exception)


def test_a_job_that_nobody_noted_down_is_noted_down_where_it_begins(in_job: Desk) -> None:
    """Whoever submitted it was killed before."""
    run = in_job.submitted(None)
    run.slurm_path.mkdir()
    run.sbatch_path.write_text("#!/bin/sh\n")
    before = JobRecord.read(run.job_path)
    done = begin(run.path)
    assert done.exit_code == 0, done
    assert run.attempt(1).sbatch_path.read_text() == "#!/bin/sh\n"
    assert JobRecord.read(run.job_path) == JobRecord("7", before.site, before.after_attempt, before.submitted)


def test_a_run_keeps_the_batch_it_was_begun_with_on_another_number_of_nodes(
    in_job: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the config leaves the batch to its shape: as `plan` has it, in the queue, and where the job begins."""
    words = ("batch=null", "gradient_accumulation_steps=4")
    run = in_job.submitted("7", *words, "cluster.nodes=2")
    begun(run, end=End("notice", 4, None, "SIGTERM"), step=4, ago=99)
    planned = json.loads(in_job.lockstep("plan", in_job.file, *words, "--json")[1])
    code, output = in_job.lockstep("submit", in_job.file, *words)
    assert code == 0, output
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    done = begin(run.path)
    assert done.exit_code == 0, done
    batch_plan = AttemptPlan.read(run.attempt(2).plan_path).batch_plan
    assert batch_plan == BatchPlan(Shape(1, 1), 2, 4)
    assert batch_plan.batch == planned["batch"] == 8


@pytest.mark.parametrize("state", ["CANCELLED", "COMPLETING", "TIMEOUT"])
def test_a_job_that_was_cancelled_meanwhile_is_not_brought_back(in_job: Desk, state: str) -> None:
    """Between the question whether it runs and the requeue lie others, and a controller that takes its time."""
    shows(in_job, state)
    scontrol.requeue_job("7", ["node2"])
    scontrol.hold_job("7", "no such layer")
    assert [words for words in in_job.told("scontrol") if words.startswith(("requeue", "release"))] == []


def test_a_job_that_runs_is_requeued_and_held(in_job: Desk) -> None:
    scontrol.requeue_job("7")
    scontrol.hold_job("7", "no such layer")
    told = in_job.told("scontrol")
    assert ("requeue 7" in told, "requeuehold 7" in told) == (True, True), told
