"""The code's digest and commit, in a clone and out of one."""

import subprocess

import pytest

from store.run.code_version import read_code_version


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A folder with two source files, where the packages are looked for; nothing is committed yet."""
    (tmp_path / "lockstep.py").write_text("start = 1\n")
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "loop.py").write_text("steps = 1\n")
    monkeypatch.setattr("store.run.code_version.ROOT", tmp_path)
    return tmp_path


def git(folder, *words):
    who = ["-c", "user.name=me", "-c", "user.email=me@here"]
    done = subprocess.run(["git", "-C", folder, *who, *words], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_out_of_a_clone_the_digest_tells(clone):
    before = read_code_version()
    assert (before.commit, before.diff) == (None, "")
    (clone / "train" / "loop.py").write_text("steps = 2\n")
    assert read_code_version().digest != before.digest


def test_the_digest_is_the_same_in_a_wheel_and_covers_where_it_starts(clone, monkeypatch):
    before = read_code_version().digest
    folder = clone / "lockstep_packages"
    folder.mkdir()
    (clone / "train").rename(folder / "train")
    monkeypatch.setattr("store.run.code_version.ROOT", folder)
    assert read_code_version().digest == before
    (clone / "lockstep.py").write_text("start = 2\n")
    assert read_code_version().digest != before


def test_in_a_clone_the_commit_and_what_was_changed(clone):
    git(clone, "init", "-q")
    git(clone, "add", ".")
    git(clone, "commit", "-qm", "first")
    before = read_code_version()
    assert (before.commit, before.diff) == (git(clone, "rev-parse", "HEAD"), "")
    (clone / "train" / "loop.py").write_text("steps = 2\n")
    assert "+steps = 2" in read_code_version().diff
    (clone / "lockstep.py").write_text("start = 2\n")
    assert "+start = 2" in read_code_version().diff


def test_inside_somebody_elses_clone_there_is_no_commit(clone, monkeypatch):
    git(clone, "init", "-q")
    git(clone, "add", ".")
    git(clone, "commit", "-qm", "theirs")
    monkeypatch.setattr("store.run.code_version.ROOT", clone / "train")
    assert read_code_version().commit is None
