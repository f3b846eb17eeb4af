"""How files of ours are written where others may write, too, and where the power may fail."""

import errno
import json
import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any

from configs.errors import LockstepError, UserError

PRIVATE = 0o755  # mode of a folder in which nobody but its owner may write
SHARED = 0o1777  # less the umask: whoever may write there adds something, and moves or removes only what is theirs


def write_atomic(path: Path, content: str | bytes, *, durable: bool = True) -> None:
    """Write a state file so that a reader sees all of it or none; `durable`: also after a power loss.

    Others may write in the folder: no name that they can guess is opened, and nothing that they put there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
    try:
        with open(descriptor, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if durable:
        sync_directory(path.parent)


def own_folder(folder: Path, mode: int, cure: str) -> None:
    """Make a folder for this user's own things. Raises UserError, with the cure, where somebody else was first."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        folder.mkdir(mode)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        what = "a link" if stat.S_ISLNK(found.st_mode) else "another user's"
        raise UserError(f"{folder}: is {what}, so what is read and written there would be theirs to choose; {cure}")


def open_to_append(path: Path) -> int:
    """A descriptor that reads and appends, of a file that is made if need be. Raises LockstepError for a link, which
    may lead to a file of ours that somebody else wants overwritten."""
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o644)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
    raise LockstepError(f"{path}: is a link to {os.readlink(path)}, and what is written here must stay here; remove it")


def spread_mode(folder: Path) -> None:
    """Give all that is in `folder` the mode that the umask gave to it: what was copied has its source's, and libraries
    write weights for their owner alone."""
    mode = stat.S_IMODE(folder.stat().st_mode)
    for path in folder.rglob("*"):
        path.chmod(mode if path.is_dir() else mode & 0o666)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as `write_atomic` does."""
    write_atomic(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def sync_directory(path: Path) -> None:
    """Make a rename in `path` durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
