"""The dataset's listing: the same samples in the same order for launcher and ranks, and bad ones named."""

import json
from pathlib import Path

import pytest
from PIL import Image

from configs.dataset import Sample, check_images, digest, from_lines, list_samples, settle, to_lines
from configs.errors import UserError
from configs.schema import Data


def image(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8)).save(path)
    return path


def metadata(folder: Path, *records: object) -> None:
    (folder / "metadata.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def test_metadata_keeps_the_files_order(tmp_path: Path) -> None:
    image(tmp_path / "b.png")
    image(tmp_path / "sub" / "a.png")
    metadata(
        tmp_path,
        {"file_name": "b.png", "text": "zwei\u2028Zeilen", "extra": 1},
        {"file_name": "sub/a.png", "text": "eins"},
    )
    listing = list_samples(tmp_path)
    size = (tmp_path / "b.png").stat().st_size
    assert listing.samples[0] == Sample("b.png", "zwei\u2028Zeilen", size)
    assert (listing.samples[1].image, listing.samples[1].caption) == ("sub/a.png", "eins")
    assert listing.problems == []


def test_pairs_are_sorted_by_path(tmp_path: Path) -> None:
    for name in ("b.png", "a.jpg", "sub/c.PNG"):
        image(tmp_path / name).with_suffix(".txt").write_text(f" {name}\n")
    found = [(sample.image, sample.caption) for sample in list_samples(tmp_path).samples]
    assert found == [(name, name) for name in ("a.jpg", "b.png", "sub/c.PNG")]


def test_missing_halves_are_named(tmp_path: Path) -> None:
    image(tmp_path / "alone.png")
    image(tmp_path / "good.png").with_suffix(".txt").write_text("good")
    (tmp_path / "orphan.txt").write_text("no image")
    listing = list_samples(tmp_path)
    assert [sample.image for sample in listing.samples] == ["good.png"]
    first, second = listing.problems
    assert first.endswith("orphan.txt: the image it captions is missing")
    assert "alone.png: has no caption; write alone.txt beside it" in second
    with pytest.raises(UserError, match=r"2 bad samples in .*data\.on_bad_sample: skip"):
        settle(Data(images=str(tmp_path)), listing)
    assert len(settle(Data(images=str(tmp_path), on_bad_sample="skip"), listing)) == 1


def test_a_missing_image_is_named_by_its_line(tmp_path: Path) -> None:
    image(tmp_path / "a.png")
    metadata(tmp_path, {"file_name": "a.png", "text": "a"}, {"file_name": "gone.png", "text": "b"})
    (problem,) = list_samples(tmp_path).problems
    assert problem == f"{tmp_path}/metadata.jsonl:2: gone.png is missing from {tmp_path}"


@pytest.mark.parametrize("line", ["{", '{"file_name": "a.png"}', "[]", '{"file_name": 1, "text": "a"}'])
def test_a_bad_metadata_line_is_refused_with_its_place(tmp_path: Path, line: str) -> None:
    (tmp_path / "metadata.jsonl").write_text(line + "\n")
    with pytest.raises(UserError, match=r"metadata\.jsonl:1: "):
        list_samples(tmp_path)


def test_text_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    image(tmp_path / "a.png").with_suffix(".txt").write_bytes(b"caf\xe9")
    assert list_samples(tmp_path).problems == [f"{tmp_path}/a.txt: is not UTF-8; save it as UTF-8"]
    (tmp_path / "metadata.jsonl").write_bytes(b"caf\xe9")
    with pytest.raises(UserError, match=r"metadata\.jsonl: is not UTF-8"):
        list_samples(tmp_path)


def test_hidden_files_are_no_samples(tmp_path: Path) -> None:
    image(tmp_path / "a.png").with_suffix(".txt").write_text("a")
    image(tmp_path / "._a.png")
    image(tmp_path / ".ipynb_checkpoints/a-checkpoint.png")
    listing = list_samples(tmp_path)
    assert (len(listing.samples), listing.problems) == (1, [])


def test_no_folder_and_no_samples(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no such folder; data\.images names"):
        list_samples(tmp_path / "none")
    with pytest.raises(UserError, match="the dataset is empty"):
        list_samples(tmp_path)


def test_an_image_that_does_not_decode_is_found_before_training(tmp_path: Path) -> None:
    image(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"not an image")
    metadata(tmp_path, {"file_name": "good.png", "text": "a"}, {"file_name": "bad.png", "text": "b"})
    checked = check_images(tmp_path, list_samples(tmp_path))
    assert [sample.image for sample in checked.samples] == ["good.png"]
    assert "bad.png: does not decode as an image" in checked.problems[0]


def test_the_list_survives_its_file_and_has_an_identity() -> None:
    samples = [Sample("a.png", "line\nbreak \u2028 ü", 5), Sample("b.png", "", 6)]
    text = to_lines(samples)
    assert from_lines(text) == samples
    assert digest(text) != digest(to_lines(samples[:1]))
    assert digest(text) != digest(to_lines([samples[0], Sample("b.png", "", 7)])), "an image that was replaced"
