"""An image folder: the same samples in the same order for launcher and ranks, and bad ones named."""

import errno
import json
import os
import re
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from configs.errors import LockstepError, UserError
from configs.schema import DataConfig
from store.dataset.bad_samples import check_bad_samples
from store.dataset.build import build_index
from store.dataset.sample import Sample
from store.dataset.sources.image_folder import ImageFolder
from tests.pngs import make_chunk


def image(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8)).save(path)
    return path


def metadata(folder: Path, *records: object) -> None:
    (folder / "metadata.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


@dataclass(frozen=True)
class Listing:
    samples: list[Sample]
    problems: list[str]


def index(folder: Path, caption: str | None = None) -> Listing:
    kept = build_index([ImageFolder(folder, caption)], None)
    return Listing([*kept.index], [bad.problem for bad in kept.bad_samples])


def refuse(folder: Path, **data: Any) -> None:
    kept = build_index([ImageFolder(folder)], None)
    check_bad_samples(DataConfig(images=str(folder), **data), kept.bad_samples, len(kept.index))


def test_metadata_keeps_the_files_order(tmp_path: Path) -> None:
    image(tmp_path / "b.png")
    image(tmp_path / "sub" / "a.png")
    metadata(
        tmp_path,
        {"file_name": "b.png", "text": "zwei\u2028Zeilen", "extra": 1},
        {"file_name": "sub/a.png", "text": "eins"},
    )
    listing = index(tmp_path)
    size = (tmp_path / "b.png").stat().st_size
    assert listing.samples[0] == Sample(0, "b.png", "b.png", 0, size, 8, 8, ("zwei\u2028Zeilen",))
    assert (listing.samples[1].name, listing.samples[1].captions[0]) == ("sub/a.png", "eins")
    assert listing.problems == []


def test_pairs_are_sorted_by_path(tmp_path: Path) -> None:
    for name in ("b.png", "a.jpg", "sub/c.PNG"):
        image(tmp_path / name).with_suffix(".txt").write_text(f" {name}\n")
    found = [(sample.name, sample.captions[0]) for sample in index(tmp_path).samples]
    assert found == [(name, name) for name in ("a.jpg", "b.png", "sub/c.PNG")]


@pytest.mark.parametrize("trouble", [OSError(errno.EIO, "Input/output error"), MemoryError()])
def test_the_machines_trouble_is_no_bad_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trouble: Exception
) -> None:
    """Skipped, they would be missing from the run for good."""
    image(tmp_path / "a.png").with_suffix(".txt").write_text("a")

    def fail(*_: object, **__: object) -> None:
        raise trouble

    with monkeypatch.context() as patched:
        patched.setattr(Image, "open", fail)
        with pytest.raises(LockstepError, match=r"a.png: cannot be read on \S+ \("):
            index(tmp_path)
    if isinstance(trouble, OSError):
        monkeypatch.setattr(Path, "read_text", fail)
        with pytest.raises(LockstepError, match=r"a.txt: cannot be read on \S+ \(Input/output error\)"):
            index(tmp_path)


def test_missing_halves_are_named(tmp_path: Path) -> None:
    image(tmp_path / "alone.png")
    image(tmp_path / "good.png").with_suffix(".txt").write_text("good")
    (tmp_path / "orphan.txt").write_text("no image")
    listing = index(tmp_path)
    assert [sample.name for sample in listing.samples] == ["good.png"]
    first, second = listing.problems
    assert first.endswith("orphan.txt: the image it captions is missing")
    assert "alone.png: has no caption; write alone.txt beside it" in second
    with pytest.raises(UserError, match=r"2 bad samples in .*data\.on_bad_sample: skip"):
        refuse(tmp_path, on_bad_sample="error")
    refuse(tmp_path, on_bad_sample="skip")
    (tmp_path / "good.txt").unlink()
    with pytest.raises(UserError, match=r"every sample is bad, so the dataset is empty; first: .*orphan"):
        refuse(tmp_path, on_bad_sample="skip")


def test_a_missing_image_is_named_by_its_line(tmp_path: Path) -> None:
    image(tmp_path / "a.png")
    metadata(tmp_path, {"file_name": "a.png", "text": "a"}, {"file_name": "gone.png", "text": "b"})
    (problem,) = index(tmp_path).problems
    assert problem == f"{tmp_path}/metadata.jsonl:2: gone.png is missing from {tmp_path}"


@pytest.mark.parametrize(
    "line",
    [
        "{",
        pytest.param("[" * 100_000, id="deep"),
        pytest.param("9" * 5000, id="digits"),
        '{"file_name": "a.png"}',
        "[]",
        '{"file_name": 1, "text": "a"}',
    ],
)
def test_a_bad_metadata_line_is_refused_with_its_place(tmp_path: Path, line: str) -> None:
    (tmp_path / "metadata.jsonl").write_text(line + "\n")
    with pytest.raises(UserError, match=r"metadata\.jsonl:1: "):
        index(tmp_path)


def test_text_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    image(tmp_path / "a.png").with_suffix(".txt").write_bytes(b"caf\xe9")
    assert index(tmp_path).problems == [f"{tmp_path}/a.txt: is not UTF-8; save it as UTF-8"]
    (tmp_path / "metadata.jsonl").write_bytes(b"caf\xe9")
    with pytest.raises(UserError, match=r"metadata\.jsonl: is not UTF-8"):
        index(tmp_path)


def test_hidden_files_are_no_samples(tmp_path: Path) -> None:
    image(tmp_path / "a.png").with_suffix(".txt").write_text("a")
    image(tmp_path / "._a.png")
    image(tmp_path / ".ipynb_checkpoints/a-checkpoint.png")
    listing = index(tmp_path)
    assert (len(listing.samples), listing.problems) == (1, [])


def test_no_folder_and_no_samples(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no such folder; data\.images names"):
        index(tmp_path / "none")
    with pytest.raises(UserError, match="the dataset is empty"):
        refuse(tmp_path)


def test_an_image_that_does_not_decode_is_found_before_training(tmp_path: Path) -> None:
    image(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"not an image")
    metadata(tmp_path, {"file_name": "good.png", "text": "a"}, {"file_name": "bad.png", "text": "b"})
    checked = index(tmp_path)
    assert [sample.name for sample in checked.samples] == ["good.png"]
    assert "bad.png: does not decode as an image" in checked.problems[0]


def test_linked_folders_are_followed(tmp_path: Path) -> None:
    """As git-annex, datalad and a scratch file system make them; each path is a sample, a way back is not."""
    for name in ("scratch/a.png", "images/b.png"):
        image(tmp_path / name).with_suffix(".txt").write_text(name)
    (tmp_path / "images/linked").symlink_to(tmp_path / "scratch")
    (tmp_path / "scratch/back").symlink_to(tmp_path / "images")
    listing = index(tmp_path / "images")
    assert [(sample.name, sample.captions[0]) for sample in listing.samples] == [
        ("b.png", "images/b.png"),
        ("linked/a.png", "scratch/a.png"),
    ]
    assert listing.problems == []


def test_a_link_that_may_be_a_folder_of_images_is_no_bad_sample(tmp_path: Path) -> None:
    """Nobody knows what would be lost: the scratch file system may be away."""
    image(tmp_path / "a.png").with_suffix(".txt").write_text("a")
    (tmp_path / "more").symlink_to(tmp_path / "scratch")
    with pytest.raises(
        UserError, match=r"/more: links to .*/scratch, which is not there; if it is a folder of images, mount"
    ):
        index(tmp_path)
    (tmp_path / "more").unlink()
    (tmp_path / "more").symlink_to("more")
    with pytest.raises(UserError, match=r"/more: cannot be read .*; if it is a folder of images"):
        index(tmp_path)


@pytest.mark.parametrize("layout", ["metadata", "pairs"])
def test_a_sample_that_cannot_be_looked_at_is_named(tmp_path: Path, layout: str) -> None:
    image(tmp_path / "good.png")
    (tmp_path / "annexed.png").symlink_to(".git/annex/objects/x")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "round.png").symlink_to("round.png")
    names = ("annexed", "good", "pipe", "round")
    if layout == "metadata":
        metadata(tmp_path, *({"file_name": f"{name}.png", "text": name} for name in names))
    else:
        for name in names:
            (tmp_path / f"{name}.txt").write_text(name)
    listing = index(tmp_path)
    assert [sample.name for sample in listing.samples] == ["good.png"]
    assert [problem.split(f"{tmp_path}/")[-1] for problem in listing.problems] == [
        "annexed.png: links to .git/annex/objects/x, which is not there",
        "pipe.png: is no regular file",
        "round.png: cannot be read (Too many levels of symbolic links)",
    ]


def test_a_caption_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    for name in ("annexed", "folder", "pipe"):
        image(tmp_path / f"{name}.png")
    (tmp_path / "annexed.txt").symlink_to(".git/annex/objects/x")
    (tmp_path / "folder.txt").mkdir()
    os.mkfifo(tmp_path / "pipe.txt")
    assert [problem.removeprefix(f"{tmp_path}/") for problem in index(tmp_path).problems] == [
        "annexed.txt: links to .git/annex/objects/x, which is not there",
        "folder.png: has no caption; write folder.txt beside it",
        "pipe.txt: is no regular file",
    ]


def test_names_and_captions_that_no_file_can_hold_are_named(tmp_path: Path) -> None:
    """dataset.jsonl is UTF-8: a name of other bytes, or half a character, cannot be written there."""
    path = image(tmp_path / "b.png").with_suffix(".txt")
    path.write_text("b")
    os.rename(tmp_path / "b.png", os.fsencode(tmp_path) + b"/caf\xe9.png")
    os.rename(path, os.fsencode(tmp_path) + b"/caf\xe9.txt")
    (problem,) = index(tmp_path).problems
    assert problem == rf"{tmp_path}/caf\udce9.png: its name is not UTF-8; rename it"
    image(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_text(
        '{"file_name": "a.png", "text": "x\\ud83d"}\n{"file_name": "\\ud83d.png", "text": "a"}\n'
    )
    first, second = index(tmp_path).problems
    place = f"{tmp_path}/metadata.jsonl"
    assert first == f"{place}:1: {tmp_path}/a.png: its caption holds half a character (a lone surrogate); write it anew"
    assert second == rf"{place}:2: {tmp_path}/\ud83d.png: its name is not UTF-8; rename it"


def test_a_name_that_no_file_can_have_is_missing(tmp_path: Path) -> None:
    image(tmp_path / "a.png")
    metadata(tmp_path, {"file_name": "a.png", "text": "a"}, {"file_name": "b" * 5000, "text": "b"})
    (problem,) = index(tmp_path).problems
    assert problem.endswith("cannot be read (File name too long)")


@pytest.mark.parametrize("name", ["decompression_bomb.png", "negative_seek.tif"])
def test_whatever_pillow_raises_is_a_bad_sample(tmp_path: Path, name: str) -> None:
    text = zlib.compress(b"x" * 2_000_000)  # more text in a header than Pillow takes, which is a ValueError
    bomb = image(tmp_path / "decompression_bomb.png").read_bytes()
    part = make_chunk(b"zTXt", b"comment\0\0" + text)
    (tmp_path / "decompression_bomb.png").write_bytes(bomb[:33] + part + bomb[33:])
    (tmp_path / "negative_seek.tif").write_bytes(b"II+\0\x08\0\0\0" + b"\xff" * 8)  # the same
    metadata(tmp_path, {"file_name": name, "text": "a"})
    checked = index(tmp_path)
    assert checked.samples == []
    [problem] = checked.problems
    assert problem.startswith(f"{tmp_path}/{name}: does not decode as an image (")


def test_csv_is_metadata_too(tmp_path: Path) -> None:
    image(tmp_path / "b.png")
    image(tmp_path / "a.png")
    (tmp_path / "metadata.csv").write_text('\ufefffile_name,text\nb.png,"one, two\nlines"\na.png,\n', encoding="utf-8")
    found = [(sample.name, sample.captions) for sample in index(tmp_path).samples]
    assert found == [("b.png", ("one, two\nlines",)), ("a.png", ("",))]
    (tmp_path / "metadata.csv").write_text("file_name,text\nb.png\n")
    with pytest.raises(UserError, match=r"metadata\.csv:2: has no text or caption"):
        index(tmp_path)
    (tmp_path / "metadata.csv").write_text('file_name,text\nb.png,"a"b\n')
    with pytest.raises(UserError, match=r"metadata\.csv:2: is no line of CSV"):
        index(tmp_path)


def test_a_sample_may_have_several_captions(tmp_path: Path) -> None:
    image(tmp_path / "a.png")
    metadata(tmp_path, {"file_name": "a.png", "text": ["one", "two"]})
    [sample] = index(tmp_path).samples
    assert sample.captions == ("one", "two")
    for wrong in ([], ["a", 1], 3, {"a": "b"}):
        metadata(tmp_path, {"file_name": "a.png", "text": wrong})
        with pytest.raises(UserError, match=r"metadata\.jsonl:1: text is .* and must be text, or a list of texts"):
            index(tmp_path)


def test_the_column_of_captions_may_be_named(tmp_path: Path) -> None:
    image(tmp_path / "a.png")
    metadata(tmp_path, {"file_name": "a.png", "blip": "b", "caption": "c"})
    assert [sample.captions for sample in index(tmp_path).samples] == [("c",)]
    assert [sample.captions for sample in index(tmp_path, "blip").samples] == [("b",)]
    with pytest.raises(UserError, match=r"metadata\.jsonl:1: has no text; "):
        index(tmp_path, "text")


def test_an_image_that_is_listed_twice_is_two_samples(tmp_path: Path) -> None:
    image(tmp_path / "a.png")
    image(tmp_path / "b.png")
    lines = [{"file_name": name, "text": "x"} for name in ("a.png", "b.png", "a.png")]
    metadata(tmp_path, *lines)
    for _ in range(2):
        kept = build_index([ImageFolder(tmp_path)], tmp_path / ".cache")
        assert [sample.name for sample in kept.index] == ["a.png", "b.png", "a.png"]
    metadata(tmp_path, *lines[:2])
    kept = build_index([ImageFolder(tmp_path)], tmp_path / ".cache")
    assert [sample.name for sample in kept.index] == ["a.png", "b.png"]


@pytest.mark.parametrize("name", ["../out.png", "sub/../../out.png", "/etc/passwd"])
def test_a_path_that_leaves_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    image(tmp_path / "out.png")
    image(tmp_path / "images/a.png")
    metadata(tmp_path / "images", {"file_name": "a.png", "text": "a"}, {"file_name": name, "text": "a"})
    with pytest.raises(UserError, match=rf"metadata\.jsonl:2: {re.escape(name)} lies outside of .*/images; put"):
        index(tmp_path / "images")


@pytest.mark.parametrize("name", ["a.gif", "a.AVIF", "a.heic", "a.svg"])
def test_a_file_of_another_kind_is_named_for_what_it_is(tmp_path: Path, name: str) -> None:
    image(tmp_path / "good.png").with_suffix(".txt").write_text("good")
    for other in ("a.dat", name, "a.zip"):
        (tmp_path / other).write_bytes(b"")
    (tmp_path / "a.txt").write_text("a")
    [problem] = index(tmp_path).problems
    kind = name.removeprefix("a")
    assert f"a.txt: the image it captions is missing, and {kind} is not read; convert {name} to" in problem


@pytest.mark.parametrize("name", ["a.TXT", "a.caption", "a.json"])
def test_a_caption_of_another_kind_is_named_for_what_it_is(tmp_path: Path, name: str) -> None:
    image(tmp_path / "a.png")
    image(tmp_path / "good.png").with_suffix(".txt").write_text("good")
    (tmp_path / name).write_text("a")
    assert index(tmp_path).problems == [
        f"{tmp_path}/a.png: has no caption; {name} is none that is read; save it as a.txt"
    ]


@pytest.mark.parametrize(
    ("name", "cure"),
    [
        ("metadata.parquet", "is no list of captions that is read; write metadata.jsonl or metadata.csv, or one .txt"),
        ("sub/metadata.jsonl", "is read only at the top of the images' folder; name .*/sub in data.images"),
    ],
)
def test_a_list_that_would_be_passed_over_is_named(tmp_path: Path, name: str, cure: str) -> None:
    image(tmp_path / "sub/a.png")
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(UserError, match=rf"/{name}: {cure}"):
        index(tmp_path)


def test_control_characters_do_not_reach_the_terminal(tmp_path: Path) -> None:
    image(tmp_path / "\x1b[31m.png")
    [problem] = index(tmp_path).problems
    assert "\x1b" not in problem
    assert r"/\x1b[31m.png: has no caption; write \x1b[31m.txt beside it" in problem


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")
def test_what_may_not_be_read_is_named(tmp_path: Path) -> None:
    """As another user, from whom one file, one list or one folder is kept."""
    folder = tmp_path / "images"
    for name in ("image.png", "caption.png", "sub/x.png", "good.png"):
        image(folder / name).with_suffix(".txt").write_text("a")
    for parent in (folder, *folder.parents):
        if parent.stat().st_mode & 0o005 != 0o005:
            parent.chmod(0o755)

    def problems() -> str:
        reader, writer = os.pipe()
        if not (child := os.fork()):
            os.setuid(65534)
            try:
                text = "\n".join(index(folder).problems)
            except UserError as error:
                text = f"refused: {error}"
            os.write(writer, text.encode())
            os._exit(0)
        os.close(writer)
        with open(reader) as pipe:
            text = pipe.read()
        assert os.waitpid(child, 0)[1] == 0
        return text

    (folder / "image.png").chmod(0)
    (folder / "caption.txt").chmod(0)
    assert problems().splitlines() == [
        f"{folder}/caption.txt: cannot be read (Permission denied)",
        f"{folder}/image.png: cannot be read (Permission denied)",
    ]
    (folder / "sub").chmod(0)
    assert problems().startswith(f"refused: {folder}/sub: cannot be listed (Permission denied), so nobody knows")
    metadata(folder, {"file_name": "good.png", "text": "a"})
    (folder / "metadata.jsonl").chmod(0)
    assert problems() == f"refused: {folder}/metadata.jsonl: cannot be read (Permission denied)"
    folder.chmod(0)
    assert problems().startswith(f"refused: {folder}")
    folder.chmod(0o755)
    tmp_path.chmod(0)
    assert problems() == f"refused: {folder}: cannot be read (Permission denied)"
    tmp_path.chmod(0o755)
