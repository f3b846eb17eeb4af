import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from configs.errors import UserError
from store.dataset.sample import BadSample, Sample
from store.dataset.sources import copied_images
from store.dataset.sources.copied_images import list_copies
from store.dataset.sources.parquet import ParquetFiles

HUB = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
IMAGES = [bytes([65 + number]) * (number % 5 + 1) for number in range(10)]


def write_parquet(path: Path, images: list[bytes | None] = IMAGES, kind: pa.DataType = HUB, **columns: object) -> Path:
    """`images` in groups of 3 rows; without `columns`, the captions are numbers in words."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = images if kind != HUB else [image if image is None else {"bytes": image, "path": None} for image in images]
    captions = columns or {"text": [f"caption {number}" for number in range(len(images))]}
    pq.write_table(pa.table({"image": pa.array(values, kind), **captions}), path, row_group_size=3)
    return path


def listed(place: Path, caption: str | None = None) -> list[Sample | BadSample]:
    source = ParquetFiles(str(place), caption, copies(place))
    return [sample for part in list(source.list_parts()) for sample in source.read_part(part)]


def copies(place: Path) -> Path:
    return place.parent / "copies"


def read(sample: Sample, place: Path) -> bytes:
    content = (copies(place) / sample.file).read_bytes()
    return content[sample.offset : sample.offset + sample.length]


def refusal(place: Path, caption: str | None = None) -> str:
    with pytest.raises(UserError) as caught:
        listed(place, caption)
    assert not copies(place).exists()
    return str(caught.value)


@pytest.mark.parametrize("kind", [HUB, pa.binary(), pa.large_binary()], ids=["hub", "bytes", "large"])
def test_every_image_is_copied_with_its_caption(tmp_path: Path, kind: pa.DataType) -> None:
    place = write_parquet(tmp_path / "train.parquet", kind=kind)
    samples = listed(place)
    assert [sample.name for sample in samples] == [f"train.parquet:{row}" for row in range(10)]
    assert [sample.captions for sample in samples] == [(f"caption {row}",) for row in range(10)]
    assert [read(sample, place) for sample in samples] == IMAGES


def test_files_of_a_folder_follow_each_other_by_name(tmp_path: Path) -> None:
    write_parquet(tmp_path / "data/b.parquet", [b"3"], text=["three"])
    write_parquet(tmp_path / "data/a/x.parquet", [b"1", b"2"], text=[["one", "un"], ["two"]])
    samples = listed(tmp_path / "data")
    assert [(sample.name, sample.captions) for sample in samples] == [
        ("a/x.parquet:0", ("one", "un")),
        ("a/x.parquet:1", ("two",)),
        ("b.parquet:0", ("three",)),
    ]


def test_digests_are_taken_on_the_way(tmp_path: Path) -> None:
    place = write_parquet(tmp_path / "a.parquet", [b"x", None, b"y"])
    _, bad, _ = listed(place)
    assert bad == BadSample("a.parquet:1", f"{tmp_path}/a.parquet:1: has no image's bytes")
    [folder] = copies(place).iterdir()
    digests = [copy and copy.sha256 for copy in list_copies(folder)]
    assert digests == [hashlib.sha256(b"x").digest(), None, hashlib.sha256(b"y").digest()]


def test_what_is_copied_is_not_copied_again(tmp_path: Path) -> None:
    place = write_parquet(tmp_path / "a.parquet")
    source = ParquetFiles(str(place), None, copies(place))
    assert source.count_bytes_to_copy() >= sum(map(len, IMAGES))
    assert source.count_samples() == 10
    assert not copies(place).exists()
    listed(place)
    assert source.count_bytes_to_copy() == 0
    before = {path: path.stat().st_mtime_ns for path in copies(place).rglob("*")}
    listed(place)
    assert {path: path.stat().st_mtime_ns for path in copies(place).rglob("*")} == before


def test_a_file_that_was_written_again_is_copied_again(tmp_path: Path) -> None:
    place = write_parquet(tmp_path / "a.parquet")
    listed(place)
    write_parquet(place, [b"new"], text=["new"])
    [sample] = listed(place)
    assert read(sample, place) == b"new"


def test_copies_that_are_gone_or_cut_off_are_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copied_images, "SHARD_BYTES", 4)
    place = write_parquet(tmp_path / "a.parquet")
    listed(place)
    first, *_, last = sorted(copies(place).rglob("*.images"))
    last.write_bytes(last.read_bytes()[:-1])
    assert [read(sample, place) for sample in listed(place)] == IMAGES
    first.unlink()
    assert [read(sample, place) for sample in listed(place)] == IMAGES


KILLED = """
import os, signal, sys
from pathlib import Path
from store.dataset.sources import copied_images
from store.dataset.sources.parquet import ParquetFiles
copied_images.SHARD_BYTES = 4
written = 0
def fatal(event, arguments):
    global written
    written += event in ("open", "os.rename", "os.mkdir") and sys.argv[2] in str(arguments[0])  # no module's import
    if written == int(sys.argv[3]) and event != "os.kill":
        os.kill(os.getpid(), signal.SIGKILL)
source = ParquetFiles(sys.argv[1], None, Path(sys.argv[2]))
sys.addaudithook(fatal)
list(source.list_parts())
print("done")
"""


def test_a_copy_that_is_killed_anywhere_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed at the opening or renaming of a file, what is visible is whole, and the next run copies the rest."""
    monkeypatch.setattr(copied_images, "SHARD_BYTES", 4)
    place = write_parquet(tmp_path / "a.parquet")
    for event in (5, 9, 14):  # of those in the folder of copies
        command = [sys.executable, "-c", KILLED, str(place), str(copies(place)), str(event)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == -signal.SIGKILL, done.stderr
        for folder in copies(place).glob("*"):
            found = [copy for copy in list_copies(folder) if copy]
            shown = [(folder / copy.file).read_bytes()[copy.offset :][: copy.length] for copy in found]
            assert shown == IMAGES[: len(shown)]
    assert found, "some of it was copied before the last kill"
    assert [read(sample, place) for sample in listed(place)] == IMAGES
    for path in copies(place).rglob(".*"):
        os.utime(path, (0, 0))
    next(copies(place).rglob("000000.arrow")).unlink()
    listed(place)
    assert list(copies(place).rglob(".*")) == []


def test_two_that_copy_at_once_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copied_images, "SHARD_BYTES", 4)
    place = write_parquet(tmp_path / "a.parquet")
    other: list[list[Sample | BadSample]] = []

    def copy_meanwhile(done: int, total: int) -> None:
        if not other:
            other.append([])
            other[0] = listed(place)

    source = ParquetFiles(str(place), None, copies(place))
    source.progress = copy_meanwhile
    samples = [sample for part in list(source.list_parts()) for sample in source.read_part(part)]
    assert samples == other[0]
    assert [read(sample, place) for sample in samples] == IMAGES


def test_a_file_that_is_written_while_it_is_copied(tmp_path: Path) -> None:
    place = write_parquet(tmp_path / "a.parquet")
    source = ParquetFiles(str(place), None, copies(place))
    [part] = source.list_parts()
    write_parquet(place, [b"new"], text=["new"])
    with pytest.raises(UserError, match=r"a\.parquet: was written while it was read; run the command again"):
        list(source.read_part(part))


@pytest.mark.parametrize(
    ("columns", "caption", "said"),
    [
        ({"text": [1]}, None, "the captions' column text holds int64, not text; it has no column of text"),
        (
            {"caption": [1.5], "blip": ["a"]},
            None,
            "column caption holds double, not text; name another with caption: blip",
        ),
        ({"blip": ["a"]}, None, "has no column text or caption (its columns: image: struct<"),
        ({"blip": ["a"], "text": ["b"]}, "label", "has no column label"),
        ({"text": [[1]]}, None, "holds list<element: int64>, not text"),
    ],
)
def test_a_caption_column_that_is_none(tmp_path: Path, columns: dict, caption: str | None, said: str) -> None:
    place = write_parquet(tmp_path / "a.parquet", [b"x"], **columns)
    text = refusal(place, caption)
    assert text.startswith(f"{place}: ")
    assert said in text


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        (
            {"url": ["a"], "text": ["b"]},
            "no column holds images' bytes (its columns: url: string, text: string); write",
        ),
        ({"a": [b"1"], "b": [b"1"], "text": ["b"]}, "the bytes of images may be in a or b (its columns: a: binary,"),
        ({"image": [{"path": "a"}], "text": ["b"]}, "no column holds images' bytes"),
    ],
)
def test_a_parquet_without_images(tmp_path: Path, columns: dict, said: str) -> None:
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    text = refusal(tmp_path / "a.parquet")
    assert text.startswith(f"{tmp_path}/a.parquet: ")
    assert said in text


def test_an_image_column_of_another_name(tmp_path: Path) -> None:
    pq.write_table(pa.table({"jpg": [b"x"], "blip": ["a cat"]}), tmp_path / "a.parquet")
    [sample] = listed(tmp_path / "a.parquet", "blip")
    assert (read(sample, tmp_path / "a.parquet"), sample.captions) == (b"x", ("a cat",))


def test_bad_captions_are_told_by_row(tmp_path: Path) -> None:
    place = write_parquet(tmp_path / "a.parquet", [b"1", b"2", b"3"], text=pa.array([["a"], None, []]))
    good, empty, none = listed(place)
    assert isinstance(good, Sample)
    assert empty == BadSample("a.parquet:1", f"{place}:1: its caption is empty (null), not text")
    assert none == BadSample("a.parquet:2", f"{place}:2: its list of captions is empty")


def test_a_file_that_is_not_whole(tmp_path: Path) -> None:
    place = write_parquet(tmp_path / "a.parquet")
    content = place.read_bytes()
    for damaged in (b"", b"PAR1", content[:-10], b"this is no parquet file at all"):
        place.write_bytes(damaged)
        assert f"{place}: is no whole parquet file (" in refusal(place)


def test_a_page_that_does_not_decode_leaves_nothing_behind(tmp_path: Path) -> None:
    place = tmp_path / "a.parquet"
    table = pa.table({"image": pa.array([b"x" * 1000]), "text": ["a"]})
    pq.write_table(
        table, place, compression="none", use_dictionary=False, write_statistics=False, write_page_checksum=True
    )
    content = bytearray(place.read_bytes())
    content[content.index(b"x" * 500)] ^= 1
    place.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.parquet: is no whole parquet file \(.*(CRC|checksum)"):
        listed(place)
    assert [path for path in copies(place).rglob("*") if path.is_file()] == []


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    place = write_parquet(tmp_path / "a.parquet")
    copies(place).write_text("a file is in the way")
    with pytest.raises(UserError, match=r"copied there \(Not a directory\); free some space, or .*data\.cache_folder"):
        listed(place)


def test_a_disk_that_is_too_small_is_told_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = write_parquet(tmp_path / "a.parquet")
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 7}))
    assert "bytes, and 7 are free); free some space" in refusal(place)


def test_a_disk_that_gets_full(tmp_path: Path) -> None:
    place = write_parquet(tmp_path / "a.parquet", [bytes(2**20)] * 6)
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({2**21}, {2**21})); "
    code = limit + "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n" + KILLED.replace("= 4", "= 2**40")
    command = [sys.executable, "-c", code, str(place), str(copies(place)), "0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "the images of parquet files cannot be copied there (File too large)" in done.stderr
    assert [path for path in copies(place).rglob("*") if path.is_file()] == []
