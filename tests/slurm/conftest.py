import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from slurm.lab import Lab, namespaces


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    """Four nodes in namespaces, with accounting. Its folder is short, for the sake of its sockets."""
    if not namespaces.can_make_namespaces():
        tell = pytest.fail if "CI" in os.environ else pytest.skip
        tell("nodes of their own need namespaces, as root")
    folder = Path(tempfile.mkdtemp(prefix="lab-", dir="/tmp"))
    lab = Lab(folder)
    try:
        lab.bring_up()
        yield lab
    finally:
        lab.take_down()
        shutil.rmtree(folder)
