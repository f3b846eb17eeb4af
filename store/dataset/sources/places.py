"""The files that an entry of data.sources names: one file, all of a folder, or those that a pattern fits."""

import glob
import os
from pathlib import Path

from configs.errors import UserError
from store.dataset.bad_samples import describe_unreadable, format_path
from store.dataset.sources.walk import walk_folder


def find_files(key: str, place: str, suffixes: tuple[str, ...]) -> tuple[Path, list[str]]:
    """The folder of the files of `place`, and their names relative to it, sorted.

    `key` (parquet, tars) wrote `place`; of a folder, and those below it, the files with one of `suffixes` are meant.
    Raises UserError where there are none, or nobody can tell.
    """
    path = Path(place)
    if os.path.isfile(path):
        return path.parent, [path.name]
    if os.path.isdir(path):
        root, names = path, [name for name in walk_folder(path).others if name.endswith(suffixes)]
        what = f"holds no {suffixes[0]} file"
    else:
        root, pattern = _split_pattern(path)
        found = glob.iglob(str(pattern), root_dir=root, recursive=True) if pattern.parts else iter(())
        names = [name for name in found if os.path.isfile(root / name)]
        what = "no such file or folder" if len(pattern.parts) == 0 else "no file fits this pattern"
    if not names:
        raise UserError(
            f"{format_path(place)}: {what}; {key} names a {suffixes[0]} file, a folder of them, or a pattern"
        )
    return root, sorted(names)


def _split_pattern(path: Path) -> tuple[Path, Path]:
    """The folder above the first part that is a pattern, and the rest; the rest is empty where there is no pattern.

    A folder whose name looks like a pattern, such as `a[1]`, is taken for itself where it is there.
    """
    root = Path(path.anchor)
    for number, part in enumerate(path.parts[1:], 1):
        if glob.has_magic(part) and not (root / part).exists():
            return root, Path(*path.parts[number:])
        root /= part
    return root, Path()


def stat_file(path: Path) -> os.stat_result:
    """Of a file that was there a moment ago. Raises UserError where it cannot be looked at."""
    try:
        return path.stat()
    except OSError as error:
        raise UserError(describe_unreadable(path, error)) from None
