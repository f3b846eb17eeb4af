"""The folder that an export fills: whole or not at all, in the place of an older export and of nothing else."""

import json
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from configs.errors import UserError

MARK = "lockstep.json"  # in every export: what it was made of, and that it may be replaced


@contextmanager
def open_export(out: Path, mark: Mapping[str, object]) -> Iterator[Path]:
    """A new folder to be filled, which is `out` once all went well; an older export goes then, and not before.

    Raises UserError where `out` holds anything else.
    """
    temporary, old = out.with_name(f".{out.name}-new"), out.with_name(f".{out.name}-old")
    _check_replaceable(out)
    for left_over in (temporary, old):
        shutil.rmtree(left_over, ignore_errors=True)
    temporary.mkdir(parents=True)
    yield temporary
    (temporary / MARK).write_text(json.dumps(mark) + "\n")
    _take_modes_of(temporary)
    if out.exists():
        out.rename(old)
    temporary.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def _check_replaceable(out: Path) -> None:
    """Raise UserError where `out` is neither free, nor an empty folder, nor an older export."""
    is_empty_folder = out.is_dir() and not any(out.iterdir())
    if out.exists() and not (out / MARK).is_file() and not is_empty_folder:
        raise UserError(f"{out}: exists and was not exported by Lockstep; name another folder, or remove it")


def _take_modes_of(folder: Path) -> None:
    """Give all that is in `folder` the mode that the umask gave to it: what was copied has its source's, and weights
    are written for their owner alone."""
    mode = stat.S_IMODE(folder.stat().st_mode)
    for path in folder.rglob("*"):
        path.chmod(mode if path.is_dir() else mode & 0o666)
