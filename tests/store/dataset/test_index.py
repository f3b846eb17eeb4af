"""The index: what was written is read again, by its rows and its bytes, and the identity tells datasets apart."""

import hashlib
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from configs.errors import LockstepError
from store.dataset import index as index_module
from store.dataset.image_file import open_image_file
from store.dataset.index import Index, write_index
from store.dataset.sample import Sample, format_sample, parse_samples
from tests.sources import ROOT

FIRST = Sample(0, "a.png", "a.png", 0, 5, 640, 480, ("line\nbreak \u2028 ü",))
SECOND = Sample(0, "b.png", "b.png", 0, 6, 8, 9, ("", "several"))
SHARD = Sample(1, "x.tar/c.jpg", "x.tar", 4, 3, 30, 40, ("c",))
ROOTS = [Path("/images"), Path("/shards")]


@pytest.mark.parametrize("rows", [1, 2, 1000])
def test_rows_come_back_as_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    monkeypatch.setattr(index_module, "_BATCH_ROWS", rows)
    path = tmp_path / "dataset.arrow"
    write_index(path, [FIRST, SECOND, SHARD], ROOTS)
    for index in (Index.open_file(path), Index.from_samples([FIRST, SECOND, SHARD], ROOTS)):
        assert [*index] == [FIRST, SECOND, SHARD]
        assert (index.widths.tolist(), index.heights.tolist()) == ([640, 8, 30], [480, 9, 40])
        assert (index.source_sizes, index.roots) == ([2, 1], ROOTS)
        assert index.caption_count == sum(len(sample.captions) for sample in (FIRST, SECOND, SHARD))
        for number in (-1, 3):
            with pytest.raises(IndexError):
                index[number]


def test_an_index_may_be_empty() -> None:
    index = Index.from_samples([], [])
    assert (len(index), [*index], index.widths.tolist()) == (0, [], [])


def test_a_source_may_be_empty() -> None:
    index = Index.from_samples([SHARD], ROOTS)
    assert (index[0], index.source_sizes) == (SHARD, [0, 1])


def test_bytes_are_read_from_files_and_from_within_them(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"whole")
    (tmp_path / "x.tar").write_bytes(b"0123456789")
    index = Index.from_samples([FIRST, SHARD], [tmp_path, tmp_path])
    with index.open(FIRST) as file:
        assert file.read() == b"whole"
    with index.open(SHARD) as file:
        assert file.read() == b"456"
    (tmp_path / "x.tar").write_bytes(b"012345")
    with index.open(SHARD) as file, pytest.raises(OSError, match=r"ends within x\.tar/c\.jpg"):
        file.read()


def test_a_part_of_a_file_reads_as_a_file_does(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(b"...." + b"abc" + b"....")
    (tmp_path / "whole").write_bytes(b"abc")
    with open_image_file(tmp_path, SHARD) as part, open(tmp_path / "whole", "rb") as whole:
        for offset, whence in ((0, 0), (1, 0), (-2, 2), (0, 2), (9, 0), (-1, 1), (1, 1)):
            assert part.seek(offset, whence) == whole.seek(offset, whence)
            assert part.tell() == whole.tell()
            assert part.read(2) == whole.read(2)
        for file in (part, whole):
            with pytest.raises((ValueError, OSError)):
                file.seek(-5)


def digest(*samples: Sample) -> str:
    return Index.from_samples(samples, ROOTS).digest


def test_the_identity_is_what_earlier_versions_computed() -> None:
    text = '{"image": "a.png", "caption": "line\\nbreak \u2028 ü", "size": 5}\n'
    assert digest(FIRST) == hashlib.sha256(text.encode()).hexdigest()
    assert parse_samples(text) == [replace(FIRST, width=0, height=0)]
    assert format_sample(FIRST) == text


def test_the_identity_tells_datasets_apart() -> None:
    others = [
        (FIRST,),
        (FIRST, SECOND),
        (SECOND, FIRST),
        (FIRST, replace(SECOND, length=7)),
        (FIRST, replace(SECOND, captions=("",))),
        (FIRST, replace(SECOND, source=1)),
        (replace(FIRST, source=1), replace(SECOND, source=1)),
    ]
    assert len({digest(*samples) for samples in others}) == len(others)
    assert digest(replace(FIRST, width=1)) == digest(FIRST), "earlier versions did not look"


def test_a_file_that_was_written_again_is_another_version_of_the_same_dataset() -> None:
    before, after = (Index.from_samples([replace(FIRST, stamp=stamp), SECOND], ROOTS) for stamp in (b"1", b"2"))
    assert before.digest == after.digest
    assert before.version != after.version
    assert after[0].stamp == b"2"
    assert before.version != Index.from_samples([replace(FIRST, stamp=b"1")], ROOTS).version


def test_a_damaged_index_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "dataset.arrow"
    write_index(path, [FIRST, SECOND, SHARD], ROOTS)
    whole = path.read_bytes()
    for cut in (0, 5, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(LockstepError, match=r"dataset\.arrow: is damaged.*submit the run again"):
            Index.open_file(path)
    table = pa.table({"name": ["a"]})
    with pa.ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(LockstepError, match="is damaged, or of another version"):
        Index.open_file(path)


READER = """
import random, re, sys
from pathlib import Path
import numpy
from store.dataset.index import Index

def anonymous():  # MB of this process that it shares with no other
    return int(re.search(r"Anonymous:\\s+(\\d+)", Path("/proc/self/smaps_rollup").read_text())[1]) / 1000

before = anonymous()
index = Index.open_file(Path(sys.argv[1]))
opened = anonymous()
rng = random.Random(1)
for _ in range(int(sys.argv[2])):
    row = rng.randrange(len(index))
    assert index[row].captions == (f"photograph {row}",), row
index.widths.sum()
print(before, opened, anonymous())
"""


@pytest.mark.parametrize("samples", [10_000, pytest.param(1_000_000, marks=pytest.mark.faults)])
def test_a_rank_that_reads_rows_holds_none(tmp_path: Path, samples: int) -> None:
    path = tmp_path / "dataset.arrow"
    rows = (Sample(0, f"{i}.jpg", f"{i}.jpg", 0, i, 512, 512, (f"photograph {i}",), bytes(16)) for i in range(samples))
    write_index(path, rows, ROOTS[:1])
    command = [sys.executable, "-P", "-c", READER, str(path), str(samples // 10)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    before, opened, after = map(float, done.stdout.split())
    assert opened - before < 5
    assert after - opened < 3
    assert after < 30
