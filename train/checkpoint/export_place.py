"""Where an export goes, a folder or a file: whole or not at all, in the place of an older export and nothing else."""

import json
import os
import secrets
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError, safe_open

from configs.errors import UserError
from store.files import spread_mode, sync_directory

MARK = "lockstep.json"  # in every folder of an export: what it was made of, and that it may be replaced
MARK_KEY = "lockstep"  # the same in the metadata of a file


@contextmanager
def open_export(out: Path, mark: Mapping[str, object]) -> Iterator[Path]:
    """A new folder to be filled, which is `out` once all went well; an older export goes then, and not before.

    Raises UserError where `out` holds anything else.
    """
    temporary, old = out.with_name(f".{out.name}-new"), out.with_name(f".{out.name}-old")
    _check_folder_replaceable(out)
    for left_over in (temporary, old):
        shutil.rmtree(left_over, ignore_errors=True)
    temporary.mkdir(parents=True)
    yield temporary
    (temporary / MARK).write_text(json.dumps(mark) + "\n")
    spread_mode(temporary)
    if out.exists():
        out.rename(old)
    temporary.rename(out)
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def open_export_file(out: Path) -> Iterator[Path]:
    """A new file to be written, in the folder of `out`, and `out` once all went well.

    Raises UserError where `out` is anything but an older export.
    """
    check_file_replaceable(out)
    temporary = out.with_name(f".{out.name}.{secrets.token_hex(8)}")
    temporary.touch()
    mode = stat.S_IMODE(temporary.stat().st_mode)
    try:
        yield temporary
        temporary.chmod(mode)  # libraries write weights for their owner alone
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        temporary.replace(out)
    finally:
        temporary.unlink(missing_ok=True)
    sync_directory(out.parent)


def check_file_replaceable(out: Path) -> None:
    """Raise UserError where `out` is neither free nor an older export."""
    if not out.exists():
        return
    try:
        with safe_open(out, framework="pt") as file:
            is_ours = MARK_KEY in (file.metadata() or {})
    except (SafetensorError, OSError):
        is_ours = False
    if not is_ours:
        raise UserError(f"{out}: exists and was not exported by Lockstep; name another file, or remove it")


def _check_folder_replaceable(out: Path) -> None:
    """Raise UserError where `out` is neither free, nor an empty folder, nor an older export."""
    is_empty_folder = out.is_dir() and not any(out.iterdir())
    if out.exists() and not (out / MARK).is_file() and not is_empty_folder:
        raise UserError(f"{out}: exists and was not exported by Lockstep; name another folder, or remove it")
