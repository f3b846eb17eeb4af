"""A folder of images.

Two layouts, told apart by what lies in it: `metadata.jsonl` or `metadata.csv`, which name the images and their
captions, or one `.txt` beside each image.
"""

import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from configs.errors import UserError
from store.dataset.bad_samples import BadSampleError, check_machine, describe_unreadable, format_path
from store.dataset.sample import BadSample, Sample
from store.dataset.sources.base import Part, make_stamp
from store.dataset.sources.captions import is_unicode
from store.dataset.sources.metadata import METADATA_NAMES, ImageRecord, read_metadata
from store.dataset.sources.walk import IMAGE_SUFFIXES, FolderContent, walk_folder
from store.dataset.threads import map_in_threads

# What people take for images and this does not read, at least not without being told to
_OTHER_PICTURES = {".avif", ".gif", ".heic", ".heif", ".ico", ".jp2", ".jxl", ".psd", ".svg", ".tga"}


class ImageFolder:
    """The `Source` of data.images. A part is an image with its captions."""

    def __init__(self, root: Path, caption: str | None = None):
        """`caption`: the metadata's column of captions; None: text, else caption."""
        self.root = root
        self.identity = f"images {root} {caption or ''}"
        self._caption = caption
        self._watched: dict[Path, int] = {}

    def list_parts(self) -> Iterator[Part | BadSample]:
        _check_folder(self.root)
        metadata = next((self.root / name for name in METADATA_NAMES if os.path.isfile(self.root / name)), None)
        if metadata is None:
            yield from self._list_pairs()
            return
        self._watched = {metadata: os.stat(metadata).st_mtime_ns}
        yield from self._list_records(metadata)

    def read_part(self, part: Part) -> Iterator[Sample | BadSample]:
        path = f"{self.root}/{part.name}"
        try:
            captions = part.captions or (_read_caption(Path(f"{_stem(path)}.txt")),)
            if not all(map(is_unicode, captions)):
                raise BadSampleError(f"{path}: its caption holds half a character (a lone surrogate); write it anew")
            yield Sample(0, part.name, part.name, 0, _stat_file(path).st_size, 0, 0, captions)
        except FileNotFoundError as error:  # gone since it was listed
            yield BadSample(part.name, f"{format_path(str(error.filename))}: is missing")
        except BadSampleError as problem:
            yield BadSample(part.name, f"{part.place}: {problem}" if part.place else str(problem))

    def list_watched(self) -> dict[Path, int]:
        return self._watched

    def _list_records(self, metadata: Path) -> Iterator[Part | BadSample]:
        times_named: Counter[str] = Counter()
        numbered = []
        for record in read_metadata(metadata, self._caption):
            _check_inside(record, self.root)
            numbered.append((record, times_named[record.image]))
            times_named[record.image] += 1

        def look_at(item: tuple[ImageRecord, int]) -> Part | BadSample:
            record, occurrence = item
            path = f"{self.root}/{record.image}"
            try:
                _check_name(path, record.image)
                size, time = _identify_file(path)
            except FileNotFoundError:
                return BadSample(record.image, f"{record.place}: {record.image} is missing from {self.root}")
            except BadSampleError as problem:
                return BadSample(record.image, f"{record.place}: {problem}")
            return Part(
                record.image,
                make_stamp(record.image, size, time, *record.captions, occurrence),
                record.captions,
                record.place,
            )

        return map_in_threads(look_at, numbered, 64)

    def _list_pairs(self) -> Iterator[Part | BadSample]:
        content = walk_folder(self.root)
        self._watched = content.folders
        _check_metadata(self.root, content)
        others = _group_by_stem(content.others)
        stems = {_stem(image) for image in content.images}
        for caption in sorted(content.captions, key=_by_parts):
            if _stem(caption) not in stems:
                yield BadSample(caption, self._describe_orphan(caption, others.get(_stem(caption), [])))

        def look_at(image: str) -> Part | BadSample:
            caption = f"{_stem(image)}.txt"
            if caption not in content.captions:
                return BadSample(image, self._describe_uncaptioned(image, others.get(_stem(image), [])))
            try:
                _check_name(f"{self.root}/{image}", image)
                facts = (*_identify_file(f"{self.root}/{image}"), *_identify_file(f"{self.root}/{caption}"))
            except FileNotFoundError as error:  # gone since it was listed
                return BadSample(image, f"{format_path(str(error.filename))}: is missing")
            except BadSampleError as problem:
                return BadSample(image, str(problem))
            return Part(image, make_stamp(image, *facts))

        yield from map_in_threads(look_at, sorted(content.images, key=_by_parts), 64)

    def _describe_orphan(self, caption: str, others: list[str]) -> str:
        place = format_path(self.root / caption)
        pictures = [name for name in others if PurePosixPath(name).suffix.lower() in _OTHER_PICTURES]
        if not pictures:
            return f"{place}: the image it captions is missing"
        suffix = PurePosixPath(pictures[0]).suffix
        cure = f"convert {format_path(pictures[0])} to one of {', '.join(sorted(IMAGE_SUFFIXES))}"
        return f"{place}: the image it captions is missing, and {suffix} is not read; {cure}"

    def _describe_uncaptioned(self, image: str, others: list[str]) -> str:
        name = format_path(PurePosixPath(f"{_stem(image)}.txt").name)
        found = format_path(PurePosixPath(others[0]).name) if others else None
        cure = f"{found} is none that is read; save it as {name}" if found else f"write {name} beside it"
        return f"{format_path(self.root / image)}: has no caption; {cure}"


def _check_folder(root: Path) -> None:
    try:
        is_folder = stat.S_ISDIR(os.stat(root).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        is_folder = False
    except (OSError, ValueError) as error:
        raise UserError(describe_unreadable(root, error)) from None
    if not is_folder:
        raise UserError(f"{format_path(root)}: no such folder; data.images names the folder of images")


def _check_metadata(root: Path, content: FolderContent) -> None:
    """Raises UserError for a list of captions that would be passed over while images lack theirs."""
    lists = sorted(name for name in content.others if PurePosixPath(name).stem == "metadata")
    if not lists or content.captions:
        return
    path = root / lists[0]
    if path.name in METADATA_NAMES:
        cure = f"name {path.parent} in data.images or data.sources, or move the list to the top, with paths from there"
        raise UserError(f"{format_path(path)}: is read only at the top of the images' folder; {cure}")
    cure = f"write {' or '.join(METADATA_NAMES)}, or one .txt beside each image"
    raise UserError(f"{format_path(path)}: is no list of captions that is read; {cure}")


def _check_inside(record: ImageRecord, root: Path) -> None:
    """Raises UserError where the name leads out of the folder: other people write such lists, too."""
    if record.image.startswith("/") or ".." in record.image.split("/"):
        cure = f"put the image into {root}, or name the folder that holds both in data.images"
        raise UserError(f"{record.place}: {record.image} lies outside of {root}; {cure}")


def _check_name(path: str, name: str) -> None:
    if not is_unicode(name):
        raise BadSampleError(f"{format_path(path)}: its name is not UTF-8; rename it")


def _read_caption(path: Path) -> str:
    _stat_file(str(path))  # a pipe would be waited on for ever
    try:
        return path.read_text(encoding="utf-8-sig").strip()
    except UnicodeDecodeError:
        raise BadSampleError(f"{path}: is not UTF-8; save it as UTF-8") from None
    except PermissionError as error:
        raise BadSampleError(describe_unreadable(path, error)) from None
    except OSError as error:
        check_machine(path, error)
        raise BadSampleError(describe_unreadable(path, error)) from None


def _identify_file(path: str) -> tuple[int, int]:
    """Its size in bytes and its time in ns. Raises as `_stat_file`."""
    found = _stat_file(path)
    return found.st_size, found.st_mtime_ns


def _stat_file(path: str) -> os.stat_result:
    """Raises BadSampleError for what is no file that can be read, FileNotFoundError where nothing is there."""
    try:
        found = os.stat(path)
    except FileNotFoundError as error:
        if not os.path.islink(path):
            raise
        raise BadSampleError(describe_unreadable(path, error)) from None
    except PermissionError as error:
        raise BadSampleError(describe_unreadable(path, error)) from None
    except (OSError, ValueError) as error:
        check_machine(path, error)
        raise BadSampleError(describe_unreadable(path, error)) from None
    if not stat.S_ISREG(found.st_mode):
        raise BadSampleError(f"{format_path(path)}: is no regular file")
    return found


def _group_by_stem(names: Iterable[str]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for name in sorted(names):
        groups.setdefault(_stem(name), []).append(name)
    return groups


def _stem(name: str) -> str:
    return os.path.splitext(name)[0]


def _by_parts(name: str) -> list[str]:
    """Orders as paths are ordered: what lies in a folder stands together."""
    return name.split("/")
