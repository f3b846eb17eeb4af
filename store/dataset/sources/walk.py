"""What lies below a folder of images."""

import os
from dataclasses import dataclass, field
from pathlib import Path

from configs.errors import UserError
from store.dataset.bad_samples import describe_unreadable, format_path

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}


@dataclass
class FolderContent:
    """Paths relative to the folder, with / between their parts; `folders` as they are opened, with st_mtime_ns."""

    images: list[str] = field(default_factory=list)
    captions: set[str] = field(default_factory=set)
    others: list[str] = field(default_factory=list)
    folders: dict[Path, int] = field(default_factory=dict)


def walk_folder(root: Path) -> FolderContent:
    """Every file below `root`, linked folders followed, hidden ones (.ipynb_checkpoints) left out.

    Raises UserError where a folder cannot be listed, bad samples skipped or not: nobody knows what would be lost.
    """
    content = FolderContent()
    waiting: list[tuple[str, frozenset[tuple[int, int]]]] = [("", frozenset())]
    while waiting:
        prefix, above = waiting.pop()
        directory = root / prefix
        try:
            found = os.stat(directory)
            with os.scandir(directory) as entries:
                visible = [entry for entry in entries if not entry.name.startswith(".")]
        except OSError as error:
            raise UserError(
                f"{format_path(directory)}: cannot be listed ({error.strerror}), so nobody knows which samples it "
                "holds; make it readable, or move it out of the images' folder"
            ) from None
        identity = (found.st_dev, found.st_ino)
        if identity in above:  # a link that leads back here: what it holds is listed already
            continue
        content.folders[directory] = found.st_mtime_ns
        for entry in visible:
            name = prefix + entry.name
            if _is_folder(entry):
                waiting.append((f"{name}/", above | {identity}))
            else:
                _add_file(content, name)
    return content


def _add_file(content: FolderContent, name: str) -> None:
    suffix = os.path.splitext(name)[1]
    if suffix == ".txt":
        content.captions.add(name)
    elif suffix.lower() in IMAGE_SUFFIXES:
        content.images.append(name)
    else:
        content.others.append(name)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Raises UserError for a link of which nobody can say: the file system that it leads to may be away."""
    try:
        if entry.is_symlink():
            entry.stat()  # raises where it leads nowhere; is_dir would only say no
        return entry.is_dir()
    except OSError as error:
        suffix = os.path.splitext(entry.name)[1]
        if suffix == ".txt" or suffix.lower() in IMAGE_SUFFIXES:  # a bad sample
            return False
        cure = "if it is a folder of images, mount or fetch it, or remove the link"
        raise UserError(f"{describe_unreadable(entry.path, error)}; {cure}") from None
