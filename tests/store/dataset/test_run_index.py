"""A run has the index that it was submitted with, also one that an earlier version began."""

import errno
import os
from pathlib import Path

import pytest
from PIL import Image

from configs.errors import LockstepError
from configs.schema import RunConfig
from store.dataset.build import build_index
from store.dataset.kept_index import KeptIndex
from store.dataset.run_index import open_run_index, place_run_index
from store.dataset.sample import format_sample
from store.dataset.sources.image_folder import ImageFolder
from store.run.run_dir import RunDir


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    (tmp_path / "run").mkdir()
    return RunDir(tmp_path / "run")


@pytest.fixture
def kept(tmp_path: Path) -> KeptIndex:
    images = tmp_path / "images"
    images.mkdir()
    for name in ("a", "b"):
        Image.new("RGB", (8, 6)).save(images / f"{name}.png")
        (images / f"{name}.txt").write_text(f"{name} \u2028 ü")
    (images / "orphan.txt").write_text("c")
    return build_index([ImageFolder(images)], tmp_path / "cache")


def config_of(kept: KeptIndex) -> RunConfig:
    return RunConfig(name="r", model="m", data={"images": str(kept.index.roots[0])})


def test_it_is_one_file_with_the_kept_one(run: RunDir, kept: KeptIndex) -> None:
    assert kept.path is not None
    for _ in range(2):
        place_run_index(run, kept)
        assert os.path.samefile(run.dataset_path, kept.path)
    assert [*open_run_index(run, config_of(kept))] == [*kept.index]
    assert '"sample": "orphan.txt", "reason": ' in run.bad_samples_path.read_text()
    assert sorted(path.name for path in run.path.iterdir()) == ["bad-samples.jsonl", "dataset.arrow"]


def test_it_is_a_copy_where_it_cannot_be_one_file(
    run: RunDir, kept: KeptIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(os, "link", refuse)
    place_run_index(run, kept)
    assert kept.path is not None
    assert not os.path.samefile(run.dataset_path, kept.path)
    assert [*open_run_index(run, config_of(kept))] == [*kept.index]


def test_bad_samples_that_are_good_again_are_not_listed(run: RunDir, kept: KeptIndex, tmp_path: Path) -> None:
    place_run_index(run, kept)
    (tmp_path / "images/orphan.txt").unlink()
    place_run_index(run, build_index([ImageFolder(tmp_path / "images")], tmp_path / "cache"))
    assert not run.bad_samples_path.exists()


def test_what_an_earlier_version_listed_is_the_same_dataset(run: RunDir, kept: KeptIndex) -> None:
    """Ranks that SLURM requeues find only that; the next submit looks at the images."""
    run.old_dataset_path.write_text("".join(map(format_sample, kept.index)), encoding="utf-8")
    old = open_run_index(run, config_of(kept))
    assert old.digest == kept.index.digest
    assert (old.has_sizes, kept.index.has_sizes) == (False, True)
    assert [(sample.name, sample.captions, sample.length) for sample in old] == [
        (sample.name, sample.captions, sample.length) for sample in kept.index
    ]
    with old.open(old[0]) as file:
        assert Image.open(file).size == (8, 6)
    place_run_index(run, kept)
    assert open_run_index(run, config_of(kept)).widths.tolist() == [8, 8]


def test_half_a_file_is_refused_with_its_cure(run: RunDir, kept: KeptIndex) -> None:
    place_run_index(run, kept)
    content = run.dataset_path.read_bytes()
    run.dataset_path.unlink()
    run.dataset_path.write_bytes(content[:-9])
    with pytest.raises(LockstepError, match=r"dataset\.arrow: is damaged.*submit the run again, which writes it anew"):
        open_run_index(run, config_of(kept))


def test_it_is_written_anew_where_the_kept_one_is_gone(run: RunDir, kept: KeptIndex) -> None:
    assert kept.path is not None
    kept.path.unlink()
    place_run_index(run, kept)
    assert [*open_run_index(run, config_of(kept))] == [*kept.index]
