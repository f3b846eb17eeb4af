"""What is wrong with samples: told in one sentence each, kept beside the index, refused or skipped."""

import errno
import json
import os
import socket
from collections.abc import Iterable
from pathlib import Path

from configs.errors import LockstepError, UserError
from configs.schema import DataConfig
from store.dataset.sample import BadSample

# What the system says of names that lead nowhere, or of files whose damage sends a reader where there is nothing. All
# else that it says is about this machine, now.
_OF_THE_FILE = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EINVAL, errno.EOVERFLOW}
_OF_THE_FILE |= {errno.ENAMETOOLONG, errno.EILSEQ}
SHOWN = 10  # bad samples that are named


class BadSampleError(Exception):
    """What is wrong with a sample, in one sentence."""


def check_machine(path: str | Path, error: Exception) -> None:
    """Whether a sample is bad must not depend on who reads it, and when: raises LockstepError where `error`, of reading
    `path`, tells of this machine, so that another one, or this one later, may read the file."""
    if isinstance(error, MemoryError):
        why = "out of memory"
    elif isinstance(error, OSError) and error.errno is not None and error.errno not in _OF_THE_FILE:
        why = str(error.strerror)
    else:
        return
    raise LockstepError(f"{format_path(path)}: cannot be read on {socket.gethostname()} ({why})") from None


def check_bad_samples(data: DataConfig, bad_samples: list[BadSample], good: int) -> None:
    """Raises UserError where samples are bad and `on_bad_sample` does not skip them, or where no good one is left."""
    count = len(bad_samples)
    if count and data.on_bad_sample == "error":
        lines = [bad.problem for bad in bad_samples[:SHOWN]]
        if count > SHOWN:
            lines.append(f"and {count - SHOWN} more")
        cure = "fix or remove them, or write data.on_bad_sample: skip"
        raise UserError("\n".join([*lines, f"{count} bad samples in {_list_places(data)}; {cure}"]))
    if not good and not count:
        cure = "put images with metadata.jsonl, or with one .txt each, there"
        raise UserError(f"{_list_places(data)}: the dataset is empty; {cure}")
    if not good:
        first = bad_samples[0].problem
        raise UserError(f"{_list_places(data)}: every sample is bad, so the dataset is empty; first: {first}")


def _list_places(data: DataConfig) -> str:
    return ", ".join(source.place for source in data.listed_sources)


def format_bad_samples(bad_samples: Iterable[BadSample]) -> str:
    """The text of `bad-samples.jsonl`: one per line."""
    records = (
        {"sample": bad.name, "reason": bad.problem, "source": bad.source, "stamp": bad.stamp.hex()}
        for bad in bad_samples
    )
    return "".join(json.dumps(record) + "\n" for record in records)


def parse_bad_samples(text: str) -> list[BadSample]:
    """What `format_bad_samples` wrote."""
    records = [json.loads(line) for line in text.splitlines()]
    return [
        BadSample(record["sample"], record["reason"], record["source"], bytes.fromhex(record["stamp"]))
        for record in records
    ]


def describe_unreadable(path: str | Path, error: OSError | ValueError) -> str:
    """That a file cannot be read, and why."""
    if isinstance(error, FileNotFoundError) and os.path.islink(path):
        return f"{format_path(path)}: links to {format_path(os.readlink(path))}, which is not there"
    return f"{format_path(path)}: cannot be read ({getattr(error, 'strerror', None) or error})"


def format_path(path: str | Path) -> str:
    """As text that any terminal and log takes, also where the name is not UTF-8 or holds control characters."""
    text = str(path).encode(errors="backslashreplace").decode()
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)
