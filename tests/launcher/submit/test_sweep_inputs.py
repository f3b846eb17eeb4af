"""A sweep looks at what its runs have in common once."""

import os
from typing import BinaryIO

import pytest
from PIL import Image

from store.dataset.index import Index
from store.run import code_version
from tests.launcher.desk import Desk

WORDS = ("lr=1e-5,2e-5,3e-5,4e-5", "data.flip=true,false")


def test_one_listing_and_one_code_version_for_all_points(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    git_calls: list[tuple[str, ...]] = []
    open_image, ask_git = Image.open, code_version._ask_git

    def count_open(file: BinaryIO, *words: object, **options: object) -> Image.Image:
        opened.append(file.name)
        return open_image(file, *words, **options)

    def count_git(*words: str) -> str:
        git_calls.append(words)
        return ask_git(*words)

    monkeypatch.setattr(Image, "open", count_open)
    monkeypatch.setattr(code_version, "_ask_git", count_git)
    code, output = desk.lockstep("sweep", desk.file, *WORDS)
    assert code == 0, output
    assert output.count("is job 8_") == 8
    assert sorted(opened) == sorted(map(str, desk.folder.glob("images/*.png")))
    assert len(git_calls) == len(set(git_calls)) <= 2


def test_points_of_several_datasets_are_told_apart(desk: Desk) -> None:
    other = desk.folder / "other"
    other.mkdir()
    for name in ("0.png", "0.txt"):
        os.link(desk.folder / "images" / name, other / name)
    code, output = desk.lockstep("sweep", desk.file, f"data.images={desk.folder}/images,{other}", "name=two")
    assert code == 0, output
    sizes = {len(Index.open_file(path)) for path in desk.folder.glob("runs/*/dataset.arrow")}
    assert sizes == {1, 8}


def test_points_that_only_cost_differently_are_refused_together(desk: Desk) -> None:
    """Their results are the same, so that only the first would ever be trained."""
    code, output = desk.lockstep("sweep", desk.file, "zero=1,2", "seed=0,1")
    assert (code, "zero=1 seed=0 and zero=2 seed=0 are the same run" in output) == (2, True), output
    assert [path.name for path in (desk.folder / "runs").iterdir()] == [".lockstep"], "the index, for the next try"
