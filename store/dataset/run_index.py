"""The index that a run directory holds."""

from pathlib import Path

from store.dataset.index import Index
from store.dataset.sample import parse_samples
from store.run.run_dir import RunDir


def open_run_index(run: RunDir, images: Path) -> Index:
    """The samples of `run`, also where an earlier version listed them; `images`: its one folder of images, then.

    Raises LockstepError where the index is damaged, FileNotFoundError where there is none.
    """
    if not run.dataset_path.exists() and run.old_dataset_path.exists():
        return Index.from_samples(parse_samples(run.old_dataset_path.read_text(encoding="utf-8")), [images])
    return Index.open_file(run.dataset_path)
