"""A folder of this user's alone on this node, for code that is compiled here and run from here."""

import os
import tempfile
from pathlib import Path

from configs.errors import LockstepError
from store.files import own_folder


def private_folder() -> Path:
    """Where it lies, whether or not it is there yet: not in the home, which nodes may share."""
    return Path(tempfile.gettempdir(), f"lockstep-{os.getuid()}")


def make_private_folder() -> Path:
    """Make it and answer it. Raises LockstepError where others may write in it, or could before: they may have put
    code there."""
    folder = private_folder()
    cure = "remove it, or set TMPDIR to a folder of yours on this node"
    own_folder(folder, 0o700, cure)
    if folder.stat().st_mode & 0o022:
        raise LockstepError(f"{folder}: is writable by others, who may have put code there to run as you; {cure}")
    return folder
