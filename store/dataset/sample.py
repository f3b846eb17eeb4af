"""A sample as launcher and ranks agree on it, and the line of JSON that it is identified by."""

import json
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Sample:
    """One image with its captions."""

    source: int  # its place in data.sources
    name: str  # as people name it, unique in its source: cats/a.png, shard-0001.tar/a.jpg, train.parquet:17
    file: str  # that holds the image's bytes, relative to the source's root
    offset: int  # of these bytes in the file
    length: int  # of these bytes
    width: int  # upright, in pixels; 0 in runs of earlier versions, which did not look
    height: int
    captions: tuple[str, ...]  # at least one
    # 16 bytes that change with the size or the time of what it was read from; none in runs of earlier versions
    stamp: bytes = field(default=b"", compare=False)


@dataclass(frozen=True)
class BadSample:
    """A sample that cannot be trained on."""

    name: str  # as `Sample.name`
    problem: str  # one sentence: place, what is wrong, and the cure
    source: int = 0
    stamp: bytes = field(default=b"", compare=False)  # as `Sample.stamp`; none of what was found without a look inside


def format_sample(sample: Sample) -> str:
    """The line of JSON that a dataset's identity is made of: that of `dataset.jsonl`, which earlier versions wrote.

    The length tells when an image was replaced. Its time does not count: a copy is the same dataset.
    """
    caption = sample.captions[0] if len(sample.captions) == 1 else sample.captions
    return json.dumps({"image": sample.name, "caption": caption, "size": sample.length}, ensure_ascii=False) + "\n"


def parse_samples(text: str) -> list[Sample]:
    """The samples of a `dataset.jsonl`."""
    # Not splitlines(): JSON leaves U+2028 and its like as they are, and a caption may hold them.
    records = [json.loads(line) for line in text.split("\n") if line]
    return [
        Sample(0, record["image"], record["image"], 0, record["size"], 0, 0, (record["caption"],)) for record in records
    ]
