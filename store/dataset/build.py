"""Builds the index of a dataset, and looks again only at what changed."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from store.dataset.bad_samples import check_machine, describe_unreadable, format_path
from store.dataset.image_file import open_image_file
from store.dataset.index import Index, write_index
from store.dataset.kept_index import KeptIndex, keep_index, open_newest_index
from store.dataset.sample import BadSample, Sample
from store.dataset.sources.base import Part, Source
from store.dataset.threads import map_in_threads

Progress = Callable[[int, int | None], None]  # parts that were looked at, of how many; None while nobody knows
_Listing = list[Part | BadSample]


def build_index(
    sources: Sequence[Source],
    folder: Path | None,
    progress: Progress = lambda done, total: None,
    *,
    decode: bool = False,
) -> KeptIndex:
    """The index of `sources` as they are now. What `folder` holds of them is used, and what is new is kept there.

    decode: look at all pixels of an image that is new, not only at its header. Raises UserError where a source cannot
    be listed or `folder` cannot be written, LockstepError where an image cannot be read on this machine.
    """
    before = open_newest_index(folder) if folder is not None else None
    listings = [_list_parts(source, progress) for source in sources]
    builder = _Builder(sources, listings, _Known.of_index(before, len(sources)), decode)
    if before is not None and builder.is_unchanged(before):
        return before
    roots = [source.root for source in sources]
    bad_samples: list[BadSample] = []

    def list_samples() -> Iterator[Sample]:
        for found in builder.read_parts(progress):
            if isinstance(found, Sample):
                yield found
            else:
                bad_samples.append(found)

    def write(path: Path) -> list[BadSample]:
        write_index(path, list_samples(), roots)
        return bad_samples

    if folder is None:
        return KeptIndex(Index.from_samples(list_samples(), roots), bad_samples, None)
    watched = {path: time for source in sources for path, time in source.list_watched().items()}
    return keep_index(folder, write, watched)


def _list_parts(source: Source, progress: Progress) -> _Listing:
    listing = []
    for part in source.list_parts():
        listing.append(part)
        progress(len(listing), None)
    return listing


@dataclass(frozen=True)
class _Known:
    """What an earlier index has of one source, by stamp."""

    index: Index | None
    rows: dict[bytes, range]
    bad: dict[bytes, list[BadSample]]

    @staticmethod
    def of_index(kept: KeptIndex | None, count: int) -> "list[_Known]":
        """Of each of the `count` sources."""
        known = [_Known(kept.index if kept else None, {}, {}) for _ in range(count)]
        if kept is None:
            return known
        start = 0
        for source, size in enumerate(kept.index.source_sizes):
            rows = known[source].rows
            for row, stamp in enumerate(kept.index.read_stamps(start, start + size), start):
                rows[stamp] = range(rows[stamp].start if stamp in rows else row, row + 1)
            start += size
        for bad in kept.bad_samples:
            known[bad.source].bad.setdefault(bad.stamp, []).append(bad)
        return known

    def read_part(self, part: Part) -> list[Sample | BadSample]:
        """Its samples, of which there is a good one, as the earlier index has them."""
        assert self.index is not None
        return [*map(self.index.__getitem__, self.rows[part.stamp]), *self.bad.get(part.stamp, [])]


@dataclass(frozen=True)
class _Builder:
    sources: Sequence[Source]
    listings: Sequence[_Listing]
    known: Sequence[_Known]
    decode: bool

    def read_parts(self, progress: Progress) -> Iterator[Sample | BadSample]:
        """All samples in their order."""
        total = sum(map(len, self.listings))
        done = 0
        for number, (listing, known) in enumerate(zip(self.listings, self.known, strict=True)):
            read = self._read_new(number)
            for part in listing:
                if isinstance(part, BadSample):
                    yield replace(part, source=number)
                else:
                    yield from known.read_part(part) if part.stamp in known.rows else next(read)
                done += 1
                progress(done, total)

    def is_unchanged(self, before: KeptIndex) -> bool:
        """Whether `before` is what `read_parts` would read. Reads only what was bad."""
        row, bad = 0, list[BadSample]()
        for number, (listing, known) in enumerate(zip(self.listings, self.known, strict=True)):
            if any(part.stamp not in known.bad for part in self._list_new(number)):
                return False
            read = self._read_new(number)
            for part in listing:
                if isinstance(part, BadSample):
                    bad.append(replace(part, source=number))
                elif part.stamp not in known.rows:
                    found = next(read)
                    bad += [one for one in found if isinstance(one, BadSample)]
                    if any(isinstance(one, Sample) for one in found):
                        return False
                elif known.rows[part.stamp].start == row:
                    row = known.rows[part.stamp].stop
                    bad += known.bad.get(part.stamp, [])
                else:
                    return False
        return row == len(before.index) and bad == before.bad_samples

    def _list_new(self, number: int) -> list[Part]:
        """The parts of a source that must be read: what no sample of the earlier index was read from."""
        rows = self.known[number].rows
        return [part for part in self.listings[number] if isinstance(part, Part) and part.stamp not in rows]

    def _read_new(self, number: int) -> Iterator[list[Sample | BadSample]]:
        source = self.sources[number]

        def read_part(part: Part) -> list[Sample | BadSample]:
            found = [_look_at(source.root, sample, self.decode) for sample in source.read_part(part)]
            return [replace(one, source=number, stamp=part.stamp) for one in found]

        return map_in_threads(read_part, self._list_new(number), releases_gil=self.decode)


def _look_at(root: Path, sample: Sample | BadSample, decode: bool) -> Sample | BadSample:
    """The sample with its width and height, or what is wrong with its image."""
    if isinstance(sample, BadSample):
        return sample
    from store.dataset.headers import open_header, read_upright_size  # brings Pillow

    try:
        with open_image_file(root, sample) as file, open_header(file) as image:
            width, height = read_upright_size(image)
            if decode:
                image.load()
    except PermissionError as error:
        return BadSample(sample.name, describe_unreadable(root / sample.file, error))
    except Exception as error:  # noqa: BLE001  (Pillow raises nearly anything: ValueError, struct.error, …)
        check_machine(root / sample.file, error)
        why = str(error) or type(error).__name__
        return BadSample(sample.name, f"{format_path(root / sample.name)}: does not decode as an image ({why})")
    return replace(sample, width=width, height=height)
