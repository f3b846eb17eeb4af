"""stop and cancel reach ranks that live through the run's folder, whatever SLURM knows or says of their job."""

import pytest

from slurm import backend
from tests.launcher.desk import AWAY, QUESTIONS, Desk, begun, ended, running


def silence(desk: Desk) -> None:
    for name in QUESTIONS:
        desk.does(name, AWAY)


def test_cancel_asks_ranks_of_a_job_that_is_not_known_here(desk: Desk) -> None:
    run = desk.submitted()
    begun(run, step=3)
    code, output = desk.lockstep("cancel", run.path)
    assert run.stop_request_path.is_file(), output
    assert (code, "knows no living job 7 of it" in output) == (1, True), output
    assert desk.told("scancel") == []


def test_cancel_asks_ranks_while_slurm_is_silent(desk: Desk) -> None:
    run = desk.submitted()
    begun(run, step=3)
    silence(desk)
    code, output = desk.lockstep("cancel", run.path)
    assert run.stop_request_path.is_file(), output
    assert (code, "does not answer" in output) == (1, True), output
    assert "asked to save" in output


def test_stop_waits_in_the_folder_of_a_run_of_which_nobody_can_tell(desk: Desk) -> None:
    """It may be loading, or in the queue."""
    run = desk.submitted()
    silence(desk)
    code, output = desk.lockstep("stop", run.path)
    assert run.stop_request_path.is_file(), output
    assert (code, "if it lives" in output) == (0, True), output


@pytest.mark.parametrize("command", ["stop", "cancel"])
def test_a_run_that_does_not_live_is_not_asked(desk: Desk, command: str) -> None:
    run = desk.submitted()
    code, output = desk.lockstep(command, run.path)
    assert (code, "is neither training nor in the queue" in output) == (2, True), output
    assert not run.stop_request_path.exists()


def test_a_cancel_that_slurm_refuses_is_told(desk: Desk) -> None:
    run = desk.submitted()
    desk.knows(running("7"))
    desk.does("scancel", "echo 'Access/permission denied' >&2; exit 1")
    code, output = desk.lockstep("cancel", run.path)
    assert (code, "scancel 7: Access/permission denied" in output) == (1, True), output


def test_a_job_that_ended_before_its_cancel_is_no_failure(desk: Desk) -> None:
    run = desk.submitted()
    desk.knows(running("7"))
    over = f"echo '{ended('7', 'COMPLETED')}' >{desk.slurm.folder}/squeue.answer"
    desk.does("scancel", f"{over}; echo 'Job/step already completing or completed' >&2; exit 1")
    code, output = desk.lockstep("cancel", run.path)
    assert code == 0, output


def test_a_job_of_which_slurm_says_nothing_after_its_cancel(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    run = desk.submitted()
    desk.knows(running("7"))
    silent = f"printf '#!/bin/sh\\nexit 1\\n' >{desk.slurm.folder}"
    desk.does("scancel", "; ".join(f"{silent}/{name}" for name in QUESTIONS))
    monkeypatch.setattr(backend, "CANCELLING", 0.0)
    code, output = desk.lockstep("cancel", run.path)
    assert (code, "SLURM has not told within 0 s of scancel whether job 7 has ended" in output) == (1, True), output
