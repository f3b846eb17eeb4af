"""A run that was given to SLURM, on a machine that has none, or whose SLURM never answers."""

import shutil

import pytest

from configs.errors import LockstepError
from slurm.job.record import JobRecord, find_active_job
from slurm.site import Site
from store.run.end import End
from tests.launcher.desk import AWAY, QUESTIONS, Desk, begun

LOCAL = ("--local", "--ranks", "1")


@pytest.mark.parametrize("job", ["7", None])
def test_where_there_is_no_slurm_a_run_that_was_given_to_it_is_left_alone(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, job: str | None
) -> None:
    """Its job may wait on the cluster whose folder this is."""
    run = desk.submitted(job)
    begun(run, end=End("notice", 4, None, "SIGTERM"), step=4, ago=99)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    code, output = desk.lockstep("submit", desk.file, *LOCAL)
    assert (code, len(run.attempts())) == (1, 1), output
    assert f"{run.path}: was given to {'job 7' if job else 'a job'}, and there is no SLURM on this machine" in output
    assert f"if that cluster is no more, remove {run.job_path}" in output


def test_a_job_whose_run_has_come_to_its_end_needs_no_slurm(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    run = desk.submitted()
    begun(run, end=End("notice", 4, None, "stop asked for by Ada"), step=4, ago=99)
    assert find_active_job(run) is None
    JobRecord("8", Site(), 1, 0.0).write(run.job_path)  # submitted again since
    with pytest.raises(LockstepError, match="was given to job 8"):
        find_active_job(run)


@pytest.mark.parametrize("job", ["7", None])
def test_a_slurm_that_never_answers_has_a_way_out(desk: Desk, job: str | None) -> None:
    run = desk.submitted(job)
    for name in QUESTIONS:
        desk.does(name, AWAY)
    assert f"if that cluster is no more, remove {run.job_path}" in desk.lockstep("submit", desk.file, *LOCAL)[1]
