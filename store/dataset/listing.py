"""The dataset as launcher and ranks agree on it: a list of images with their captions, in a fixed order.

Two layouts, told apart by what lies in the folder: `metadata.jsonl` (one JSON object per line with `file_name` and
`text`, as Hugging Face's imagefolder reads it), or one `.txt` beside each image.
"""

import errno
import json
import os
import socket
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from configs.errors import LockstepError, UserError
from configs.schema import DataConfig
from store.dataset.index import Index
from store.dataset.sample import Sample

# What the system says of names that lead nowhere, or of files whose damage sends a reader where there is nothing. All
# else that it says is about this machine, now.
_OF_THE_FILE = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EINVAL, errno.EOVERFLOW}
_OF_THE_FILE |= {errno.ENAMETOOLONG, errno.EILSEQ}
SHOWN = 10  # bad samples that are named
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}


@dataclass(frozen=True)
class DatasetListing:
    """What a folder holds: the samples that are there, and what is wrong with the others, one sentence each."""

    samples: list[Sample]
    problems: list[str]


def list_samples(folder: Path) -> DatasetListing:
    """The samples of `folder` in their fixed order: the file's order, or sorted by path. Opens no image.

    Raises UserError where a folder cannot be listed, bad samples skipped or not: nobody knows what would be lost.
    """
    if not os.path.isdir(folder):
        raise UserError(f"{folder}: no such folder; data.images names the folder of images")
    metadata = folder / "metadata.jsonl"
    listing = _from_metadata(folder, metadata) if os.path.isfile(metadata) else _from_pairs(folder)
    if not listing.samples and not listing.problems:
        raise UserError(f"{folder}: the dataset is empty; put images with metadata.jsonl, or with one .txt each, there")
    return listing


def index_folder(folder: Path) -> Index:
    """The samples of an image folder, in memory. Opens no image."""
    return Index.from_samples(list_samples(folder).samples, [folder])


def check_images(folder: Path, listing: DatasetListing) -> DatasetListing:
    """`listing` less the images whose header does not read. Pixels are not decoded: that would read every byte."""
    from PIL import Image

    def problem(sample: Sample) -> str | None:
        path = folder / sample.name
        try:
            with Image.open(path):
                return None
        except PermissionError as error:
            return _unreadable(path, error)
        except Exception as error:  # noqa: BLE001  (Pillow raises nearly anything: ValueError, struct.error, …)
            check_machine(path, error)
            return f"{path}: does not decode as an image ({type(error).__name__})"

    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(problem, listing.samples, chunksize=64))
    good = [sample for sample, bad in zip(listing.samples, found, strict=True) if bad is None]
    return DatasetListing(good, listing.problems + [bad for bad in found if bad is not None])


def check_machine(path: Path, error: Exception) -> None:
    """Whether a sample is bad must not depend on who reads it, and when: raises LockstepError where `error`, of reading
    `path`, tells of this machine, so that another one, or this one later, may read the file."""
    if isinstance(error, MemoryError):
        why = "out of memory"
    elif isinstance(error, OSError) and error.errno is not None and error.errno not in _OF_THE_FILE:
        why = str(error.strerror)
    else:
        return
    raise LockstepError(f"{_shown(path)}: cannot be read on {socket.gethostname()} ({why})") from None


def select_samples(data: DataConfig, listing: DatasetListing) -> list[Sample]:
    """The samples to train on: all of them, or with `on_bad_sample: skip` those that are whole."""
    count = len(listing.problems)
    if count and data.on_bad_sample == "error":
        lines = listing.problems[:SHOWN]
        if count > SHOWN:
            lines.append(f"and {count - SHOWN} more")
        cure = "fix or remove them, or write data.on_bad_sample: skip"
        raise UserError("\n".join([*lines, f"{count} bad samples in {data.images}; {cure}"]))
    if not listing.samples:
        raise UserError(f"{data.images}: every sample is bad, so the dataset is empty; first: {listing.problems[0]}")
    return listing.samples


def _from_metadata(folder: Path, metadata: Path) -> DatasetListing:
    samples, problems = [], []
    try:
        text = metadata.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{metadata}: is not UTF-8; save it as UTF-8") from None
    except OSError as error:
        raise UserError(_unreadable(metadata, error)) from None
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        place = f"{metadata}:{number}"
        image, caption = _record(line, place)
        try:
            samples.append(_sample(folder, image, caption))
        except FileNotFoundError:
            problems.append(f"{place}: {image} is missing from {folder}")
        except _BadSample as problem:
            problems.append(f"{place}: {problem}")
    return DatasetListing(samples, problems)


def _record(line: str, place: str) -> tuple[str, str]:
    """The image and the caption that a line of metadata.jsonl names."""
    try:
        record = json.loads(line)
        image, caption = record["file_name"], record["text"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        what = f"has no {error}" if isinstance(error, KeyError) else "is no JSON object"
        raise UserError(f'{place}: {what}; each line is {{"file_name": "a.png", "text": "its caption"}}') from None
    if not isinstance(image, str) or not isinstance(caption, str):
        raise UserError(f"{place}: file_name and text must both be text")
    return image, caption


def _from_pairs(folder: Path) -> DatasetListing:
    images: set[Path] = set()
    captions: set[Path] = set()
    for name in _files(folder):
        path = Path(name).relative_to(folder)
        (captions if path.suffix == ".txt" else images).add(path)
    samples, problems = [], []
    stems = {path.with_suffix("") for path in images}
    for caption in sorted(captions):
        if caption.with_suffix("") not in stems:
            problems.append(f"{_shown(folder / caption)}: the image it captions is missing")
    for image in sorted(images):
        caption = image.with_suffix(".txt")
        if caption not in captions:
            problems.append(f"{_shown(folder / image)}: has no caption; write {_shown(Path(caption.name))} beside it")
            continue
        try:
            samples.append(_sample(folder, image.as_posix(), _caption(folder / caption)))
        except FileNotFoundError as error:  # gone since it was listed
            problems.append(f"{_shown(str(error.filename))}: is missing")
        except _BadSample as problem:
            problems.append(str(problem))
    return DatasetListing(samples, problems)


def _files(folder: Path) -> Iterator[str]:
    """Every image and caption below `folder`, linked folders followed, hidden ones (.ipynb_checkpoints) left out."""
    waiting: list[tuple[str, frozenset[tuple[int, int]]]] = [(str(folder), frozenset())]
    while waiting:
        directory, above = waiting.pop()
        try:
            found = os.stat(directory)
            with os.scandir(directory) as entries:
                visible = [entry for entry in entries if not entry.name.startswith(".")]
        except OSError as error:
            raise UserError(
                f"{_shown(directory)}: cannot be listed ({error.strerror}), so nobody knows which samples it holds; "
                "make it readable, or move it out of the images' folder"
            ) from None
        identity = (found.st_dev, found.st_ino)
        if identity in above:  # a link that leads back here: what it holds is listed already
            continue
        for entry in visible:
            if _is_folder(entry):
                waiting.append((entry.path, above | {identity}))
            elif _is_half(entry.name):
                yield entry.path


def _is_half(name: str) -> bool:
    """Whether it is one of the two files of a sample."""
    suffix = os.path.splitext(name)[1]
    return suffix == ".txt" or suffix.lower() in IMAGE_SUFFIXES


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Raises UserError for a link of which nobody can say: the file system that it leads to may be away."""
    try:
        if entry.is_symlink():
            entry.stat()  # raises where it leads nowhere; is_dir would only say no
        return entry.is_dir()
    except OSError as error:
        if _is_half(entry.name):  # a bad sample
            return False
        cure = "if it is a folder of images, mount or fetch it, or remove the link"
        raise UserError(f"{_unreadable(entry.path, error)}; {cure}") from None


class _BadSample(Exception):
    """What is wrong with a sample, in one sentence."""


def _sample(folder: Path, image: str, caption: str) -> Sample:
    """Raises _BadSample, or FileNotFoundError where there is no such image."""
    path = folder / image
    if not _is_unicode(image):
        raise _BadSample(f"{_shown(path)}: its name is not UTF-8; rename it")
    if not _is_unicode(caption):
        raise _BadSample(f"{path}: its caption holds half a character (a lone surrogate); write it anew")
    return Sample(0, image, image, 0, _size(path), 0, 0, (caption,))


def _is_unicode(text: str) -> bool:
    """Whether it can be written to dataset.jsonl: no bytes of another encoding, no half of a character."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _caption(path: Path) -> str:
    _size(path)  # a pipe would be waited on for ever
    try:
        return path.read_text(encoding="utf-8-sig").strip()
    except UnicodeDecodeError:
        raise _BadSample(f"{path}: is not UTF-8; save it as UTF-8") from None
    except PermissionError as error:
        raise _BadSample(_unreadable(path, error)) from None
    except OSError as error:
        check_machine(path, error)
        raise _BadSample(_unreadable(path, error)) from None


def _size(path: Path) -> int:
    """In bytes. Raises _BadSample for what is no file that can be read, FileNotFoundError where nothing is there."""
    try:
        found = path.stat()
    except FileNotFoundError as error:
        if not path.is_symlink():
            raise
        raise _BadSample(_unreadable(path, error)) from None
    except PermissionError as error:
        raise _BadSample(_unreadable(path, error)) from None
    except (OSError, ValueError) as error:
        check_machine(path, error)
        raise _BadSample(_unreadable(path, error)) from None
    if not stat.S_ISREG(found.st_mode):
        raise _BadSample(f"{_shown(path)}: is no regular file")
    return found.st_size


def _unreadable(path: str | Path, error: OSError | ValueError) -> str:
    if isinstance(error, FileNotFoundError) and os.path.islink(path):
        return f"{_shown(path)}: links to {_shown(os.readlink(path))}, which is not there"
    return f"{_shown(path)}: cannot be read ({getattr(error, 'strerror', None) or error})"


def _shown(path: str | Path) -> str:
    """As text that any terminal and log takes, also where the name is not UTF-8."""
    return str(path).encode(errors="backslashreplace").decode()
