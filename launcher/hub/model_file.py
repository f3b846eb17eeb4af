"""A model in one file: turned once into a diffusers folder in the cache folder, by a process of its own with torch."""

import hashlib
import os
import secrets
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from configs.errors import LockstepError, UserError
from configs.model_file import ModelFile
from configs.model_folder import check_model_file, check_settings
from configs.schema import RunConfig
from launcher.hub.fetch import fetch_settings
from launcher.torch_part import run_torch_part
from store.files import spread_mode
from store.run.records import Record

_UNFINISHED = 86400.0  # seconds after which nobody is still writing a folder


@dataclass(frozen=True)
class FileDigest(Record):
    """Of a model's file as it was when it was last read, so that it is not read anew by each command."""

    digest: str


def resolve_model_file(config: RunConfig) -> Path:
    """The folder that `config.model` was turned into, now or earlier. What is there already is found by what the file
    holds, wherever it lies.

    Raises UserError where the file is not one we train, or diffusers cannot read it; or the settings that go with it
    cannot be had.
    """
    file = Path(config.model)
    found = check_model_file(config)
    folder = _find_folder(config, _digest_file(config.cache_folder, file))
    if not folder.is_dir():
        _convert(file, found, fetch_settings(config.pipeline_config or found.settings), folder)
    return folder


def find_model_folder(config: RunConfig) -> Path | None:
    """The same where the file was turned already, and has not changed since; reads nothing of it."""
    try:
        record = FileDigest.read_if_written(_stamp_path(config.cache_folder, Path(config.model)))
    except (LockstepError, OSError):  # half of one, or no file
        return None
    folder = None if record is None else _find_folder(config, record.digest)
    return folder if folder is not None and folder.is_dir() else None


def _find_folder(config: RunConfig, digest: str) -> Path:
    key = hashlib.sha256(f"{digest} {config.pipeline_config}".encode()).hexdigest()[:32]
    return config.cache_folder / "models" / key


def _stamp_path(cache_folder: Path, file: Path) -> Path:
    status = file.stat()
    stamp = f"{os.path.realpath(file)} {status.st_size} {status.st_mtime_ns}"
    return cache_folder / "models" / "digests" / f"{hashlib.sha256(stamp.encode()).hexdigest()[:32]}.json"


def _digest_file(cache_folder: Path, file: Path) -> str:
    """Of all its bytes."""
    path = _stamp_path(cache_folder, file)
    record = FileDigest.read_if_written(path)
    if record is None:
        with open(file, "rb") as opened:
            record = FileDigest(hashlib.file_digest(opened, "sha256").hexdigest())
        _write(record, path)
    return record.digest


def _write(record: FileDigest, path: Path) -> None:
    try:
        record.write(path)
    except OSError as error:
        raise UserError(f"{path.parent}: cannot be written ({error.strerror}); write data.cache_folder") from None


def _convert(file: Path, found: ModelFile, settings: Path, folder: Path) -> None:
    """Visible whole or not at all, whoever does it at the same time."""
    check_settings(settings, found, str(file))
    for left_over in folder.parent.glob(".*-*"):  # of one that was killed
        with suppress(FileNotFoundError):
            if time.time() - left_over.stat().st_mtime > _UNFINISHED:
                shutil.rmtree(left_over, ignore_errors=True)
    temporary = folder.with_name(f".{folder.name}-{secrets.token_hex(4)}")
    print(f"turning {file} into a diffusers folder, once: {folder}", flush=True)
    try:
        exit_code = run_torch_part("train.models.from_file", file, found.class_name, settings, temporary, offline=True)
        if exit_code:
            error = UserError if exit_code == UserError.exit_code else LockstepError
            raise error(f"{file}: was not turned into a diffusers folder, so there is nothing to start from")
        spread_mode(temporary)  # for whoever shares the cache
        _show(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _show(temporary: Path, folder: Path) -> None:
    """Give it its name, unless another was quicker."""
    try:
        temporary.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise
