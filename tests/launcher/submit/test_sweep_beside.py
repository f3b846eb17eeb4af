"""A sweep beside runs that are trained here, and beside those who submit at the same time."""

import pytest

from launcher.run_lock import hold_run
from launcher.submit import sweep
from store.run.run_dir import RunDir
from tests.launcher.desk import Desk
from tests.launcher.folders import add_attempt

WORDS = ("lr=1e-5,2e-5",)


def test_a_point_that_is_trained_here_is_left_alone(desk: Desk) -> None:
    run = desk.ready("name=mine-lr-1e-5", "lr=1e-5").run
    with hold_run(run):
        add_attempt(run, step=3)
        code, output = desk.lockstep("sweep", desk.file, *WORDS)
    assert code == 0, output
    assert "mine-lr-1e-5 is running" in output
    assert "mine-lr-2e-5 is job 8" in output
    assert len(desk.queued()) == 1


def test_a_lock_that_is_taken_meanwhile_keeps_one_point_out(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "is_run_held", lambda run: False)  # as it was at the first look
    with hold_run(RunDir(desk.folder / "runs/mine-lr-1e-5")):
        code, output = desk.lockstep("sweep", desk.file, *WORDS)
    assert code == 0, output
    assert "mine-lr-1e-5 is not queued: " in output
    assert "is in use by process" in output
    assert "mine-lr-2e-5 is job 8" in output
