"""What an index is built from."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Protocol, runtime_checkable

from store.dataset.sample import BadSample, Sample


@dataclass(frozen=True, slots=True)
class Part:
    """What a source reads as one: an image with its captions, a tar shard, a parquet file."""

    name: str  # relative to the source's root, unique there
    stamp: bytes  # of `make_stamp`, unique there; as long as it is the same, the part need not be read again
    captions: tuple[str, ...] = ()  # where the listing tells them
    place: str = ""  # the line that lists it


class Source(Protocol):
    """One entry of data.sources. A part is read only if its stamp is new; a bad one is read each time."""

    root: Path  # the folder that its samples' files are relative to
    identity: str  # its kind, its place and what else decides which samples it has: no two sources share it

    def list_parts(self) -> Iterator[Part | BadSample]:
        """Its parts in their fixed order, which is that of the samples; looks at sizes and times, opens no image.

        Raises UserError where it cannot be listed.
        """
        ...

    def read_part(self, part: Part) -> Iterator[Sample | BadSample]:
        """The samples of a part in their order, at least one. Called by several threads at once.

        `source`, `width` and `height` of the samples are 0: the builder sets them. Raises UserError or LockstepError.
        """
        ...

    def list_watched(self) -> Mapping[Path, int]:
        """The folders and files whose times tell, without a look at every image, that samples came or went: their
        st_mtime_ns as `list_parts` found it, before it looked into them."""
        ...


@runtime_checkable
class CopyingSource(Source, Protocol):
    """A source whose images are copied before they are read; `list_parts` copies what is not copied yet."""

    progress: Callable[[int, int], None]  # called with the bytes that are copied, and that will be

    def count_samples(self) -> int:
        """Good and bad ones; copies nothing."""
        ...

    def count_bytes_to_copy(self) -> int:
        """Of images that are not copied yet."""
        ...


def make_stamp(*facts: str | int) -> bytes:
    """16 bytes of all that decides what a part's samples are: names, sizes in bytes, times in ns, known captions."""
    return blake2b(repr(facts).encode(), digest_size=16).digest()
