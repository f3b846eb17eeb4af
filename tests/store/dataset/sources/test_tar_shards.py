import bz2
import gzip
import io
import json
import lzma
import tarfile
import tracemalloc
from pathlib import Path

import pytest

from configs.errors import UserError
from store.dataset.sample import BadSample, Sample
from store.dataset.sources.tar_shards import TarShards

Members = dict[str, bytes]
PAIR = {"a.jpg": b"image", "a.txt": b"a cat\n"}


def write_tar(path: Path, members: Members | list[tuple[str, bytes]], form: int = tarfile.USTAR_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form, encoding="utf-8") as tar:
        for name, content in members.items() if isinstance(members, dict) else members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def listed(place: Path, caption: str | None = None) -> list[Sample | BadSample]:
    source = TarShards(str(place), caption)
    parts = list(source.list_parts())
    return [sample for part in parts for sample in source.read_part(part)]


def problem(place: Path, members: Members | list[tuple[str, bytes]], caption: str | None = None) -> str:
    """What is wrong with the one sample of a tar."""
    [bad] = listed(write_tar(place / "a.tar", members), caption)
    assert isinstance(bad, BadSample)
    return bad.problem


def refusal(place: Path) -> str:
    with pytest.raises(UserError) as caught:
        listed(place)
    return str(caught.value)


def test_samples_lie_where_their_bytes_are(tmp_path: Path) -> None:
    write_tar(tmp_path / "b.tar", {"x/2.png": b"second", "x/2.json": b'{"caption": ["two", "deux"], "n": 1}'})
    write_tar(
        tmp_path / "deep/c.tar", {"3.jpg": b"third", "3.json": b'{"text": "3", "caption": "no"}', "3.txt": b"three"}
    )
    samples = listed(write_tar(tmp_path / "a.tar", PAIR | {"README": b"", "a.cls": b"7"}).parent)
    assert [(sample.name, sample.captions) for sample in samples] == [
        ("a.tar/a.jpg", ("a cat",)),
        ("b.tar/x/2.png", ("two", "deux")),
        ("deep/c.tar/3.jpg", ("three",)),
    ]
    for sample, content in zip(samples, (b"image", b"second", b"third"), strict=True):
        assert (tmp_path / sample.file).read_bytes()[sample.offset : sample.offset + sample.length] == content


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT], ids=["GNU long names", "pax headers"])
def test_long_names_in_other_letters(tmp_path: Path, form: int) -> None:
    key = "ein sehr langer Ordner für Möwen/" * 9 + "ü"
    [sample] = listed(write_tar(tmp_path / "a.tar", {f"{key}.JPG": b"image", f"{key}.txt": b"x"}, form))
    assert sample.name == f"a.tar/{key}.JPG"
    assert (tmp_path / "a.tar").read_bytes()[sample.offset :].startswith(b"image")


def test_only_members_that_follow_each_other_are_a_sample(tmp_path: Path) -> None:
    """As webdataset groups them; what comes after another sample is one of its own."""
    members = [("a.jpg", b"1"), ("b.jpg", b"2"), ("b.txt", b"b"), ("a.txt", b"a")]
    first, second, third = listed(write_tar(tmp_path / "a.tar", members))
    assert (first.name, second.name, third.name) == ("a.tar/a.jpg", "a.tar/b.jpg", "a.tar/a")
    assert (type(first), type(second), type(third)) == (BadSample, Sample, BadSample)


def test_the_key_ends_at_the_first_dot_of_the_last_part(tmp_path: Path) -> None:
    members = {"v1.0/a.jpg": b"1", "v1.0/a.txt": b"a", "v1.0/b.seg.png": b"0", "v1.0/b.jpg": b"2", "v1.0/b.txt": b"b"}
    samples = listed(write_tar(tmp_path / "a.tar", members))
    assert [sample.name for sample in samples] == ["a.tar/v1.0/a.jpg", "a.tar/v1.0/b.jpg"]


def test_a_pattern_and_a_key_of_the_json(tmp_path: Path) -> None:
    members = {"1.jpg": b"", "1.txt": b"plain", "1.json": b'{"blip": "chosen"}'}
    for name in ("train-0.tar", "train-1.tar", "val-0.tar"):
        write_tar(tmp_path / "[data]" / name, members)
    samples = listed(tmp_path / "[data]/train-*.tar", "blip")
    assert [(sample.name, sample.captions) for sample in samples] == [
        ("train-0.tar/1.jpg", ("chosen",)),
        ("train-1.tar/1.jpg", ("chosen",)),
    ]


@pytest.mark.parametrize(
    ("members", "caption", "said"),
    [
        ({"a.jpg": b""}, None, "has no caption; its members lack a .txt, or a .json with text"),
        ({"a.txt": b"a"}, None, "its members are .txt; a sample has one image"),
        ({"a.jpg": b"", "a.png": b"", "a.txt": b""}, None, "its members are .jpg, .png, .txt; a sample has one image"),
        ([("a.jpg", b""), ("a.txt", b"1"), ("a.txt", b"2")], None, "and one member of a kind"),
        ({"a.jpg": b"", "a.txt": b"\xff"}, None, "its .txt is not UTF-8"),
        ({"a.jpg": b"", "a.txt": b"x" * (2**20 + 1)}, None, "its .txt has 1,048,577 bytes, too many for a caption"),
        ({"a.jpg": b"", "a.json": b"{"}, None, "its .json is none ("),
        ({"a.jpg": b"", "a.json": b"[" * 100_000}, None, "its .json has no text and no caption"),
        ({"a.jpg": b"", "a.json": b"[]"}, None, "its .json has no text and no caption; name another key"),
        ({"a.jpg": b"", "a.json": b'{"text": 3}'}, None, "its caption is a number, not text"),
        ({"a.jpg": b"", "a.json": b'{"text": null}'}, None, "its caption is empty (null), not text"),
        ({"a.jpg": b"", "a.json": b'{"text": []}'}, None, "its list of captions is empty"),
        ({"a.jpg": b"", "a.json": b'{"text": ["a", 1.5]}'}, None, "one of its captions is a number"),
        ({"a.jpg": b"", "a.json": b'{"text": "\\ud83d"}'}, None, "half a character"),
        ({"a.jpg": b"", "a.txt": b"a", "a.json": b"{}"}, "blip", "its .json has no blip; name another key"),
        ({"a.jpg": b"", "a.txt": b"a"}, "blip", "its members lack a .json with blip"),
    ],
)
def test_a_bad_sample_is_told_with_its_place(tmp_path: Path, members: Members, caption: str | None, said: str) -> None:
    text = problem(tmp_path, members, caption)
    assert text.startswith(f"{tmp_path}/a.tar/a")
    assert said in text


def test_a_name_of_another_encoding(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.GNU_FORMAT, encoding="latin-1") as tar:
        for kind in ("jpg", "txt"):
            tar.addfile(tarfile.TarInfo(f"café.{kind}"))
    [bad] = listed(tmp_path / "a.tar")
    assert bad.problem == f"{tmp_path}/a.tar/caf\\udce9.jpg: its name is not UTF-8; rename it"


@pytest.mark.parametrize(
    ("pack", "command"),
    [(gzip.compress, "gunzip"), (bz2.compress, "bunzip2"), (lzma.compress, "unxz")],
)
def test_a_compressed_tar_is_refused_with_the_cure(tmp_path: Path, pack: object, command: str) -> None:
    path = write_tar(tmp_path / "a.tar.gz", PAIR)
    path.write_bytes(pack(path.read_bytes()))  # type: ignore[operator]
    text = refusal(tmp_path)
    assert text.startswith(f"{path}: is compressed")
    assert text.endswith(f"unpack it with {command}")


def test_a_tar_that_is_not_whole_is_refused_wherever_it_is_cut(tmp_path: Path) -> None:
    """A reader that takes a broken header for the end, as tarfile does, would lose the rest without a word."""
    path = tmp_path / "a.tar"
    whole = write_tar(path, {"a.jpg": b"x" * 600, "a.txt": b"a", "b.jpg": b"y", "b.txt": b"b"}).read_bytes()
    end = len(whole.rstrip(b"\0"))
    assert len(listed(path)) == 2
    for length in [1, 511, 512, 700, 1536, 1537, 2048, 2560, 3000, 4000, end]:
        path.write_bytes(whole[:length])
        text = refusal(path)
        assert text.startswith(f"{path}: ")
        assert "cut off, fetch or write it again" in text
    path.write_bytes(b"")
    assert "has no whole header at byte 0" in refusal(path)


@pytest.mark.parametrize("place", [0, 1536])
def test_a_broken_header_is_refused(tmp_path: Path, place: int) -> None:
    path = write_tar(tmp_path / "a.tar", {"a.jpg": b"x" * 600, "a.txt": b"a"})
    content = bytearray(path.read_bytes())
    content[place + 3] ^= 1
    path.write_bytes(content)
    assert f"{path}: has no whole header at byte {place:,} (bad checksum)" in refusal(path)


def test_a_size_below_zero_leads_in_no_circle(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", PAIR)
    content = bytearray(path.read_bytes())
    content[124:136] = (2**96 - 2048).to_bytes(12, "big")  # -2,048 in base 256, as GNU tar writes it
    content[148:156] = b" " * 8
    content[148:156] = b"%06o\0 " % sum(content[:512])
    path.write_bytes(content)
    assert "has no whole header at byte 0" in refusal(path)


def test_tars_that_were_joined_by_cat_are_refused(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", PAIR)
    path.write_bytes(path.read_bytes() * 2)
    assert "goes on after its end at byte" in refusal(path)


@pytest.mark.parametrize(
    ("place", "said"),
    [("none.tar", "no such file or folder"), ("*.tar", "no file fits this pattern"), (".", "holds no .tar file")],
)
def test_tars_that_are_not_there(tmp_path: Path, place: str, said: str) -> None:
    assert refusal(tmp_path / place) == (
        f"{tmp_path / place}: {said}; tars names a .tar file, a folder of them, or a pattern"
    )


def test_folders_that_link_to_themselves(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", PAIR)
    (tmp_path / "again").symlink_to(tmp_path)
    assert [sample.name for sample in listed(tmp_path)] == ["a.tar/a.jpg"]


def test_listing_keeps_no_members(tmp_path: Path) -> None:
    def peak(count: int) -> int:
        members = [(f"{number}.{kind}", b"") for number in range(count) for kind in ("jpg", "txt")]
        source = TarShards(str(write_tar(tmp_path / "a.tar", members)), None)
        [part] = source.list_parts()
        tracemalloc.start()
        found = sum(1 for _ in source.read_part(part))
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert found == count
        return most

    peak(10)
    assert peak(2000) < 2 * peak(20)


def test_another_time_or_size_is_another_part(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", PAIR)
    [before] = TarShards(str(path), None).list_parts()
    assert [before] == list(TarShards(str(path), None).list_parts())
    path.write_bytes(path.read_bytes() + bytes(512))
    assert [before] != list(TarShards(str(path), None).list_parts())


def test_json_with_a_mark_of_its_bytes_order(tmp_path: Path) -> None:
    record = json.dumps({"text": "mark"}).encode("utf-8-sig")
    [sample] = listed(write_tar(tmp_path / "a.tar", {"a.jpg": b"", "a.json": record}))
    assert sample.captions == ("mark",)
