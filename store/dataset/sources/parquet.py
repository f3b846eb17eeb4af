"""Parquet files that hold images' bytes, as the hub's data sets do.

An image is not read from the parquet file but from a copy in the cache folder; see `copied_images`.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from configs.errors import UserError
from store.dataset.bad_samples import BadSampleError, format_path
from store.dataset.sample import BadSample, Sample
from store.dataset.sources.base import Part, make_stamp
from store.dataset.sources.captions import read_captions
from store.dataset.sources.copied_images import CopiedImage, count_copied_groups, is_copied, list_copies, write_copies
from store.dataset.sources.parquet_file import ParquetImages
from store.dataset.sources.places import find_files, read_times, stat_file


class ParquetFiles:
    """A `CopyingSource`; each file is a part."""

    def __init__(self, place: str, caption: str | None, copies: Path):
        """`place`: a file, a folder of them, or a pattern; `caption`: a column; `copies`: the folder where images are
        copied to, for all data sets. Raises UserError where there is no parquet file."""
        self.progress: Callable[[int, int], None] = lambda done, total: None
        self.root = copies
        self.identity = repr(("parquet", place, caption))
        self._caption = caption
        self._copies: dict[str, str] = {}  # of each file, the folder of its copies
        self._times: dict[Path, int] = {}
        self._folder, self._names = find_files("parquet", place, (".parquet",))

    def list_parts(self) -> Iterator[Part | BadSample]:
        """Copies what is not copied yet. Raises UserError where the copies cannot be written."""
        self._times = read_times(self._folder, self._names)  # before anything that takes long
        self._copies = {name: self._name_copies(self._folder / name) for name in self._names}
        self._copy_images()
        for name, copies in self._copies.items():
            yield Part(name, make_stamp(name, copies))

    def read_part(self, part: Part) -> Iterator[Sample | BadSample]:
        """Raises UserError where the file was written since it was listed."""
        path, copies = self._folder / part.name, self._copies[part.name]
        captions = ParquetImages(path, self._caption).read_captions()
        if self._name_copies(path) != copies:
            raise UserError(
                f"{format_path(path)}: was written while it was read; run the command again once it is whole"
            )
        for row, (image, caption) in enumerate(zip(list_copies(self.root / copies), captions, strict=True)):
            yield self._make_sample(f"{part.name}:{row}", copies, image, caption)

    def list_watched(self) -> dict[Path, int]:
        return self._times

    def count_samples(self) -> int:
        """The rows of all files, good and bad; looks at their footers."""
        return sum(ParquetImages(self._folder / name, self._caption).row_count for name in self._names)

    def count_bytes_to_copy(self) -> int:
        """Of images that are not copied yet."""
        return sum(size for _, size in self._list_uncopied())

    def _copy_images(self) -> None:
        uncopied = list(self._list_uncopied())
        total = sum(size for _, size in uncopied)
        if not uncopied:
            return
        self._check_space(total)
        done = 0
        for file, _ in uncopied:
            folder = self.root / self._name_copies(file.path)
            first = count_copied_groups(folder)

            def read_groups(file: ParquetImages = file, first: int = first) -> Iterator[Iterator[memoryview | None]]:
                nonlocal done
                for number in range(first, file.group_count):
                    yield file.read_images(number)
                    done += file.count_bytes(number) - file.count_bytes(number + 1)
                    self.progress(done, total)

            try:
                write_copies(folder, first, file.group_count, read_groups())
            except OSError as error:
                raise self._refuse_folder(folder, str(error.strerror)) from None

    def _list_uncopied(self) -> Iterator[tuple[ParquetImages, int]]:
        """The files that are not copied as a whole, and the bytes of images that each lacks."""
        for name in self._names:
            path = self._folder / name
            folder = self.root / self._name_copies(path)
            if is_copied(folder):
                continue
            file = ParquetImages(path, self._caption)
            first = count_copied_groups(folder)
            if first < file.group_count:
                yield file, file.count_bytes(first)

    def _check_space(self, needed: int) -> None:
        """Raises UserError where the disk of the copies has less, before any is written."""
        folder = self.root
        while not folder.exists():
            folder = folder.parent
        free = shutil.disk_usage(folder).free
        if free < needed:
            raise self._refuse_folder(self.root, f"they have {needed:,} bytes, and {free:,} are free")

    def _refuse_folder(self, folder: Path, why: str) -> UserError:
        cure = "free some space, or name another folder with data.cache_folder"
        return UserError(f"{format_path(folder)}: the images of parquet files cannot be copied there ({why}); {cure}")

    def _name_copies(self, path: Path) -> str:
        """The folder of a file's copies: another one where the file was written again."""
        found = stat_file(path)
        return make_stamp(os.path.realpath(path), found.st_size, found.st_mtime_ns).hex()

    def _make_sample(self, name: str, copies: str, image: CopiedImage | None, caption: object) -> Sample | BadSample:
        try:
            if image is None:
                raise BadSampleError("has no image's bytes")
            captions = read_captions(caption)
        except BadSampleError as error:
            return BadSample(name, f"{format_path(self._folder / name)}: {error}")
        return Sample(0, name, f"{copies}/{image.file}", image.offset, image.length, 0, 0, captions)
