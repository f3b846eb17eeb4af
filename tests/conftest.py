import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.shell import TEAM
from train.engines import cpu_extension

# DeepSpeed's extension is compiled once for all tests, where runs have it too.
os.environ["TORCH_EXTENSIONS_DIR"] = str(cpu_extension.extension_folder())


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder that a team shares: what is made in it belongs to the group, which may write there by umask 002."""
    folder = Path(tempfile.mkdtemp())
    before = os.umask(0o002)
    try:
        os.chown(folder, -1, TEAM)
        folder.chmod(0o2775)
        yield folder
    finally:
        os.umask(before)
        shutil.rmtree(folder)
