"""webdataset's shards: uncompressed tars, in which members of one name that follow each other are a sample.

An image is read where it lies in the tar, by its offset; listing a shard walks over the headers and reads no image.
Members are grouped as webdataset groups them: the path up to the first dot of its last part is the sample's key, the
rest is the member's kind; what has no kind belongs to no sample.
"""

import json
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import BinaryIO

from configs.errors import UserError
from store.dataset.bad_samples import BadSampleError, describe_unreadable, format_path
from store.dataset.sample import BadSample, Sample
from store.dataset.sources.base import Part, make_stamp
from store.dataset.sources.captions import CAPTION_KEYS, is_unicode, read_captions
from store.dataset.sources.places import find_files, read_times, stat_file
from store.dataset.sources.walk import IMAGE_SUFFIXES

# Compressed ones are found, too, so that they are refused and not left out.
SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_MEMBER = re.compile(r"((?:.*/)?[^./]+)\.([^/]+)", re.DOTALL)
_COMPRESSED = {b"\x1f\x8b": "gunzip", b"BZh": "bunzip2", b"\xfd7zXZ": "unxz", b"\x28\xb5\x2f\xfd": "unzstd"}
_LONGEST_TEXT = 2**20  # bytes of a caption's member
_AGAIN = "fetch or write it again"


@dataclass(frozen=True, slots=True)
class _Member:
    path: str
    key: str
    kind: str  # jpg, txt, json, …
    offset: int  # of its bytes in the tar
    length: int


class TarShards:
    """A `Source` of shards, each of which is a part."""

    def __init__(self, place: str, caption: str | None):
        """`place`: a tar, a folder of them, or a pattern; `caption`: a key of the samples' .json. Raises UserError
        where there is no tar."""
        self.caption = caption
        self._times: dict[Path, int] = {}
        self.root, self._names = find_files("tars", place, SUFFIXES)
        self.identity = repr(("tars", place, caption))

    def list_parts(self) -> Iterator[Part | BadSample]:
        self._times = read_times(self.root, self._names)
        for name in self._names:
            found = stat_file(self.root / name)
            yield Part(name, make_stamp(name, found.st_size, found.st_mtime_ns))

    def read_part(self, part: Part) -> Iterator[Sample | BadSample]:
        """Raises UserError where the shard is compressed, damaged or cut off: nobody knows what would be left out."""
        path = self.root / part.name
        try:
            with open(path, "rb") as file:
                for _, members in groupby(_list_members(file, path), key=lambda member: member.key):
                    yield self._make_sample(file, part.name, list(members))
        except OSError as error:
            raise UserError(describe_unreadable(path, error)) from None

    def list_watched(self) -> dict[Path, int]:
        return self._times

    def _make_sample(self, file: BinaryIO, shard: str, members: list[_Member]) -> Sample | BadSample:
        by_kind = {member.kind: member for member in members}
        images = [member for member in members if f".{member.kind}" in IMAGE_SUFFIXES]
        name = f"{shard}/{images[0].path if images else members[0].key}"
        try:
            if len(images) != 1 or len(by_kind) < len(members):
                kinds = ", ".join(f".{member.kind}" for member in members)
                raise BadSampleError(
                    f"its members are {format_path(kinds)}; a sample has one image, and one member of a kind"
                )
            if not is_unicode(name):
                raise BadSampleError("its name is not UTF-8; rename it")
            captions = self._read_captions(file, by_kind)
        except BadSampleError as error:
            return BadSample(format_path(name), f"{format_path(self.root / name)}: {error}")
        [image] = images
        return Sample(0, name, shard, image.offset, image.length, 0, 0, captions)

    def _read_captions(self, file: BinaryIO, by_kind: dict[str, _Member]) -> tuple[str, ...]:
        if self.caption is None and "txt" in by_kind:
            return read_captions(_read_text(file, by_kind["txt"]).strip())
        if "json" not in by_kind:
            wanted = f"a .json with {self.caption}" if self.caption else "a .txt, or a .json with text"
            raise BadSampleError(f"has no caption; its members lack {wanted}")
        try:
            record = json.loads(_read_text(file, by_kind["json"]))
        except RecursionError:
            record = None
        except ValueError as error:
            raise BadSampleError(f"its .json is none ({error})") from None
        keys = (self.caption,) if self.caption else CAPTION_KEYS
        found = [key for key in keys if isinstance(record, dict) and key in record]
        if not found:
            raise BadSampleError(f"its .json has no {' and no '.join(keys)}; name another key with caption")
        return read_captions(record[found[0]])


def _read_text(file: BinaryIO, member: _Member) -> str:
    if member.length > _LONGEST_TEXT:
        raise BadSampleError(f"its .{member.kind} has {member.length:,} bytes, too many for a caption")
    file.seek(member.offset)
    try:
        return file.read(member.length).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise BadSampleError(f"its .{member.kind} is not UTF-8; save it as UTF-8") from None


def _list_members(file: BinaryIO, path: Path) -> Iterator[_Member]:
    """The members that belong to samples. Raises UserError where the tar is not whole: one that ends within a member
    has no header after it."""
    for info in _list_headers(file, path):
        if info.issparse():
            raise UserError(
                f"{format_path(path)}: holds {format_path(info.name)} in pieces (sparse); write it without --sparse"
            )
        match = _MEMBER.fullmatch(info.name)
        if match and info.isreg():
            yield _Member(info.name, match[1], match[2].lower(), info.offset_data, info.size)


def _list_headers(file: BinaryIO, path: Path) -> Iterator[tarfile.TarInfo]:
    """The headers, one at a time: `tarfile` itself would keep them all, and take a broken one for the tar's end."""
    _refuse_compressed(file, path)
    place = 0
    try:
        tar = tarfile.TarFile(fileobj=file, encoding="utf-8")
        tar.offset = 0
        while True:
            place = tar.offset
            file.seek(place)
            info = tarfile.TarInfo.fromtarfile(tar)
            if tar.offset <= place:  # else a negative size leads in a circle
                raise tarfile.HeaderError(f"a size of {info.size}")
            yield info
    except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
        _check_end(file, path)
    except tarfile.TarError as error:
        raise UserError(
            f"{format_path(path)}: has no whole header at byte {place:,} ({error}); it was damaged or cut off, {_AGAIN}"
        ) from None


def _check_end(file: BinaryIO, path: Path) -> None:
    """Raises UserError where something comes after the end: a second tar, of which readers see nothing."""
    place = file.tell()
    while chunk := file.read(2**20):
        if chunk.count(0) < len(chunk):
            raise UserError(
                f"{format_path(path)}: goes on after its end at byte {place:,}, as tars do that were joined by cat; "
                "join them with tar --concatenate, or keep them apart"
            )


def _refuse_compressed(file: BinaryIO, path: Path) -> None:
    start = file.read(8)
    for magic, command in _COMPRESSED.items():
        if start.startswith(magic):
            raise UserError(
                f"{format_path(path)}: is compressed, so that no image can be read without all before it; images are "
                f"compressed by themselves, so unpack it with {command}"
            )
