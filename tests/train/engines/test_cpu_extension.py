"""What a rank compiles and loads lies in a folder of its user's alone: whoever can write there runs as that user."""

import os
import re
import tempfile
from pathlib import Path

import pytest

from configs.errors import LockstepError
from tests.shell import as_colleague, two_users
from train.engines import cpu_extension


@pytest.fixture
def place(shared: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of this user's extensions on a node whose /tmp is `shared`."""
    monkeypatch.setattr(tempfile, "tempdir", str(shared))
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR")
    return shared / f"lockstep-{os.getuid()}"


@two_users
@pytest.mark.parametrize(
    ("words", "what"),
    [(["mkdir", "-m", "777"], "another user's"), (["ln", "-s", "/tmp"], "a link"), ([], "writable by others")],
)
def test_a_folder_that_others_may_write_in_is_refused(place: Path, words: list[str], what: str) -> None:
    if words:
        assert as_colleague(*words, place).returncode == 0
    else:
        place.mkdir()  # by umask 002
    cure = "remove it, or set TMPDIR to a folder of yours on this node"
    with pytest.raises(LockstepError, match=f"^{re.escape(str(place))}: is {what}, .*; {cure}$"):
        cpu_extension.build_extension()
    assert "TORCH_EXTENSIONS_DIR" not in os.environ


@two_users
def test_the_folder_is_ones_own_whatever_the_umask(place: Path) -> None:
    cpu_extension.make_extension_folder()
    cpu_extension.make_extension_folder()
    assert "Permission denied" in as_colleague("touch", place / "planted.so").stderr
    assert "Permission denied" in as_colleague("touch", cpu_extension.extension_folder() / "planted.so").stderr
