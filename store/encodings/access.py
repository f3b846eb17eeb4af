"""What is told where the cache's folder cannot be written: before a run starts, and while it encodes."""

import errno
import getpass
import os
import shutil
from pathlib import Path

from configs.errors import UserError
from store.encodings.family import list_path

CURE = "name another folder with data.cache_folder, or write data.cache: off"
_FULL = {errno.ENOSPC, errno.EDQUOT}


def explain_failed_write(error: OSError, folder: Path) -> UserError:
    """Why `folder`, or what is in it, was not written, in one sentence with the cure."""
    place = Path(error.filename or folder)
    if error.errno in _FULL:
        return UserError(f"{place}: cannot be written, as the disk or the quota is full; free some of it, {CURE}")
    existing = find_existing(place)
    owner = ""
    if error.errno in (errno.EACCES, errno.EPERM):
        owner = f", and {existing} belongs to {existing.owner()}" if _has_owner(existing) else ""
    return UserError(f"{place}: cannot be written by {getpass.getuser()} ({error.strerror}{owner}); {CURE}")


def check_room(cache_folder: Path, size: int) -> None:
    """Raises UserError where `size` bytes of encodings surely cannot be written there. Writes nothing."""
    existing = find_existing(list_path(cache_folder))
    if not os.access(existing, os.W_OK | os.X_OK):
        raise explain_failed_write(PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(existing)), existing)
    free = shutil.disk_usage(existing).free
    if free < size:
        needed = f"{size / 1e9:,.1f} GB of encodings are to be written, and {free / 1e9:,.1f} GB are free"
        raise UserError(f"{list_path(cache_folder)}: {needed}; free some of it, {CURE}")


def find_existing(path: Path) -> Path:
    """`path`, or what of it is there already."""
    while not path.exists():
        path = path.parent
    return path


def _has_owner(path: Path) -> bool:
    try:
        path.owner()
    except KeyError:  # a number that has no name here
        return False
    return True
