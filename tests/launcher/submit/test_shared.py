"""Runs in a folder that a team shares: what a submit leaves as it was, and what it makes its owner's alone."""

import os
import stat
from pathlib import Path

import pytest

from tests.launcher.desk import Desk
from tests.shell import as_colleague, two_users

SWEEP = ("sweep", "lr=1e-5,2e-5")


@two_users
@pytest.mark.parametrize("words", [("submit",), SWEEP])
@pytest.mark.parametrize("broken", ["owner", "closed"])
def test_a_submit_to_another_user_s_run_rewrites_nothing(
    desk: Desk, shared: Path, words: tuple[str, ...], broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [
        desk.submitted("7", f"name={name}", f"lr={name[-4:]}", f"runs={shared}")
        if "lr" in name
        else desk.submitted("7", f"runs={shared}")
        for name in (("mine",) if words[0] == "submit" else ("mine-lr-1e-5", "mine-lr-2e-5"))
    ]
    last = runs[-1]
    last.slurm_path.mkdir()
    if broken == "owner":
        os.chown(last.slurm_path, os.stat(shared).st_gid, -1)
    else:
        monkeypatch.setattr(Path, "chmod", _refuse)
    before = [(run.job_path.read_text(), run.config_path.stat().st_ino) for run in runs]
    code, output = desk.lockstep(words[0], desk.file, *words[1:], f"runs={shared}")
    assert (code, desk.queued()) == (2, []), output
    said = f"{last.slurm_path}: is another user's" if broken == "owner" else "cannot be made yours alone to write in"
    assert said in output, output
    assert [(run.job_path.read_text(), run.config_path.stat().st_ino) for run in runs] == before


def _refuse(*_: object) -> None:
    raise PermissionError(1, "Operation not permitted")


@two_users
@pytest.mark.parametrize("words", [("submit",), SWEEP])
def test_nobody_else_writes_where_a_job_s_script_lies(desk: Desk, shared: Path, words: tuple[str, ...]) -> None:
    code, output = desk.lockstep(words[0], desk.file, *words[1:], f"runs={shared}")
    assert code == 0, output
    folders = [path.parent for path in shared.rglob("job.sbatch")]
    assert len(folders) == (1 if words[0] == "submit" else 2)
    for folder in folders:
        assert stat.S_IMODE(folder.stat().st_mode) & 0o022 == 0
        assert "Permission denied" in as_colleague("ln", "-s", "/etc/passwd", folder / "other").stderr


@two_users
def test_nobody_else_puts_an_attempt_in_the_place_of_ours(desk: Desk, shared: Path) -> None:
    run = desk.ready(f"runs={shared}").run
    attempt = run.open_attempt()
    moved = as_colleague("mv", attempt.path, attempt.path.with_name("0002"))
    assert (moved.returncode, attempt.path.is_dir()) == (1, True), moved
