"""The index that a run directory holds."""

import os
import secrets
import shutil
from pathlib import Path

from configs.schema import RunConfig
from store.dataset.bad_samples import format_bad_samples
from store.dataset.index import Index, write_index
from store.dataset.kept_index import KeptIndex
from store.dataset.sample import parse_samples
from store.files import write_atomic
from store.run.run_dir import RunDir


def open_run_index(run: RunDir, config: RunConfig) -> Index:
    """The samples of `run`, also where an earlier version listed them.

    Raises LockstepError where the index is damaged, FileNotFoundError where there is none.
    """
    if not run.dataset_path.exists() and run.old_dataset_path.exists():
        samples = parse_samples(run.old_dataset_path.read_text(encoding="utf-8"))
        return Index.from_samples(samples, [Path(config.data.listed_sources[0].place)])
    return Index.open_file(run.dataset_path)


def place_run_index(run: RunDir, kept: KeptIndex) -> None:
    """Give `run` the index, as one file with the kept one where the file system allows it. Raises OSError."""
    assert kept.path is not None
    temporary = run.dataset_path.with_name(f".{run.dataset_path.name}.{secrets.token_hex(8)}")
    try:
        try:
            os.link(kept.path, temporary)
        except OSError:  # another file system, one without such links, or another user's file
            _copy(kept, temporary)
        os.replace(temporary, run.dataset_path)
    finally:
        temporary.unlink(missing_ok=True)  # also after a rename to what is the same file already, which does nothing
    if kept.bad_samples:
        write_atomic(run.bad_samples_path, format_bad_samples(kept.bad_samples))
    else:
        run.bad_samples_path.unlink(missing_ok=True)


def _copy(kept: KeptIndex, path: Path) -> None:
    assert kept.path is not None
    try:
        shutil.copyfile(kept.path, path)
    except FileNotFoundError:  # removed since it was opened: fetching a model may take days
        write_index(path, kept.index, kept.index.roots)
