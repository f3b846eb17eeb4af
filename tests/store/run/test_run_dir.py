"""A run's folder that a team shares: whoever may write in it reads and overwrites no file of the run's owner."""

import os
import stat
from pathlib import Path

import pytest

from configs.errors import LockstepError
from store.files import open_to_append, write_atomic
from store.run.run_dir import RunDir
from tests.shell import as_colleague, two_users


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def private(tmp_path: Path) -> Path:
    """A file of the owner's that nobody else may read."""
    path = tmp_path / "private"
    path.write_text("the owner's")
    path.chmod(0o600)
    return path


@two_users
def test_a_planted_link_is_not_written_through(shared: Path, private: Path) -> None:
    """The names that a process of ours might take for its temporary file, and the file's own."""
    for name in (f".stop.{os.getpid()}", ".stop", "stop"):
        assert as_colleague("ln", "-s", private, shared / name).returncode == 0
    write_atomic(shared / "stop", "Ada")
    assert private.read_text() == "the owner's"
    assert (shared / "stop").read_text() == "Ada"
    assert not (shared / "stop").is_symlink()


@pytest.mark.parametrize(("umask", "expected"), [(0o002, 0o644), (0o022, 0o644), (0o077, 0o600)])
def test_a_state_file_is_its_owners_to_write_whatever_the_umask(tmp_path: Path, umask: int, expected: int) -> None:
    before = os.umask(umask)
    try:
        write_atomic(tmp_path / "state", "x")
    finally:
        os.umask(before)
    assert mode(tmp_path / "state") == expected


def test_a_write_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "state" / "full").mkdir(parents=True)
    with pytest.raises(OSError, match="state"):
        write_atomic(tmp_path / "state", "x")
    with pytest.raises(UnicodeEncodeError):
        write_atomic(tmp_path / "other", "\ud83d")
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


@two_users
def test_only_its_owner_writes_in_an_attempt(shared: Path, private: Path) -> None:
    """The batch shell, srun and torchrun open logs by name and follow links: nobody else may plant one."""
    attempt = RunDir(shared / "run").open_attempt()
    for place in (attempt.launcher_log_path, attempt.log_path(0), attempt.path / "heartbeats"):
        assert "Permission denied" in as_colleague("ln", "-s", private, place).stderr
    assert as_colleague("mkdir", attempt.path.with_name("0002")).returncode == 0, "a colleague may go on with the run"


def test_a_log_is_not_written_through_a_link(tmp_path: Path, private: Path) -> None:
    (tmp_path / "log").symlink_to(private)
    with pytest.raises(LockstepError, match=r"/log: is a link .*; remove it"):
        open_to_append(tmp_path / "log")
    assert private.read_text() == "the owner's"


def test_a_log_is_appended_to(tmp_path: Path) -> None:
    for text in (b"a", b"b"):
        with open(open_to_append(tmp_path / "log"), "ab") as file:
            file.write(text)
    assert (tmp_path / "log").read_bytes() == b"ab"


def test_only_folders_with_an_attempts_name_are_attempts(tmp_path: Path) -> None:
    """What people leave beside them is nobody's attempt."""
    run = RunDir(tmp_path)
    for name in ("0001", "0010", "12345", "0000", "2", "00012", "²", "٠٠٠٣", "0001.old"):
        (tmp_path / "attempts" / name).mkdir(parents=True)
        (tmp_path / "attempts" / name / "plan.json").touch()
    assert [attempt.number for attempt in run.attempts()] == [1, 10, 12345]
    assert run.open_attempt().number == 12346
