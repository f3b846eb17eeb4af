"""The files that an entry of data.sources names: one file, all of a folder, or those that a pattern fits."""

import glob
import os
import stat
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
        names = _list_matches(root, pattern) if pattern.parts else []
        what = "no file fits this pattern" if pattern.parts else "no such file or folder"
    if not names:
        raise UserError(
            f"{format_path(place)}: {what}; {key} names a {suffixes[0]} file, a folder of them, or a pattern"
        )
    for name in names:
        if format_path(name) != name:
            raise UserError(f"{format_path(root / name)}: its name is not UTF-8, or does not print; rename it")
    return root, sorted(names)


def _list_matches(root: Path, pattern: Path) -> list[str]:
    """All but folders: a link that leads nowhere is refused by whoever reads it, and not passed over."""
    try:
        os.listdir(root)  # glob itself takes a folder that cannot be listed for an empty one
    except OSError as error:
        raise UserError(describe_unreadable(root, error)) from None
    found = glob.iglob(str(pattern), root_dir=root, recursive=True)
    return [name for name in found if not os.path.isdir(root / name)]


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
    """Of a file that was there a moment ago. Raises UserError where it cannot be looked at, or would be waited on."""
    found = _stat(path)
    if not stat.S_ISREG(found.st_mode):
        raise UserError(f"{format_path(path)}: is no regular file")
    return found


def read_times(root: Path, names: list[str]) -> dict[Path, int]:
    """The times, in ns, of the files `names` below `root` and of the folders that they lie in: they tell when one came,
    went or was written again."""
    paths = {root / name for name in names}
    folders = {root, *(root / parent for name in names for parent in Path(name).parents)}
    return {path: _stat(path).st_mtime_ns for path in sorted(paths | folders)}


def _stat(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except OSError as error:
        raise UserError(describe_unreadable(path, error)) from None
