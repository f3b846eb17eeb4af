"""The index is brought up to date by looking at what changed, and is whole whoever builds, dies or may not write."""

import multiprocessing
import os
import random
import resource
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from configs.errors import UserError
from store.dataset.build import build_index
from store.dataset.kept_index import KeptIndex, is_index_current, open_newest_index
from store.dataset.sample import BadSample
from store.dataset.sources.image_folder import ImageFolder


def add_image(path: Path, caption: str = "a", width: int = 8) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, 6)).save(path)
    path.with_suffix(".txt").write_text(caption)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for name in ("a.png", "sub/b.jpg", "sub/c.png"):
        add_image(tmp_path / "images" / name)
    return tmp_path / "images"


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the images that were opened."""
    names: list[str] = []
    original = Image.open

    def count_open(file, *words, **options):
        names.append(Path(file.name).name)
        return original(file, *words, **options)

    monkeypatch.setattr(Image, "open", count_open)
    return names


def build(images: Path, *more: Path, decode: bool = False) -> KeptIndex:
    sources = [ImageFolder(folder) for folder in (images, *more)]
    return build_index(sources, images.parent / "cache", decode=decode)


def names_of(kept: KeptIndex) -> list[str]:
    return [sample.name for sample in kept.index]


def test_only_what_changed_is_looked_at_again(images: Path, opened: list[str]) -> None:
    first = build(images)
    assert sorted(opened) == ["a.png", "b.jpg", "c.png"]
    assert [(sample.width, sample.height) for sample in first.index] == [(8, 6)] * 3
    opened.clear()
    again = build(images)
    assert (opened, again.path) == ([], first.path)

    add_image(images / "a.png", width=9)
    (images / "sub/b.txt").write_text("another caption")
    add_image(images / "new.png")
    (images / "sub/c.png").unlink()
    (images / "sub/c.txt").unlink()
    changed = build(images)
    assert sorted(opened) == ["a.png", "b.jpg", "new.png"]
    assert changed.path != first.path
    assert [(sample.name, sample.width, sample.captions) for sample in changed.index] == [
        ("a.png", 9, ("a",)),
        ("new.png", 8, ("a",)),
        ("sub/b.jpg", 8, ("another caption",)),
    ]
    assert names_of(first) == ["a.png", "sub/b.jpg", "sub/c.png"], "who has the older one open reads on"


def test_a_copy_of_the_images_is_the_same_dataset_in_another_version(images: Path) -> None:
    first = build(images)
    os.utime(images / "a.png", ns=(1, 1))
    touched = build(images)
    assert touched.index.digest == first.index.digest
    assert touched.index.version != first.index.version


def test_a_bad_sample_is_looked_at_each_time(images: Path, opened: list[str]) -> None:
    (images / "a.png").write_bytes(b"no image")
    (images / "orphan.txt").write_text("a")
    before = build(images)
    assert [(bad.name, bad.problem.partition(": ")[0]) for bad in before.bad_samples] == [
        ("orphan.txt", f"{images}/orphan.txt"),
        ("a.png", f"{images}/a.png"),
    ]
    opened.clear()
    again = build(images)
    assert (opened, again.path) == (["a.png"], before.path)
    assert again.bad_samples == before.bad_samples
    time_then = (images / "a.png").stat().st_mtime_ns
    good = (images / "sub/c.png").read_bytes()
    (images / "a.png").write_bytes(good)
    os.utime(images / "a.png", ns=(time_then, time_then))
    assert names_of(build(images)) == ["a.png", "sub/b.jpg", "sub/c.png"]


def change_something(folder: Path, rng: random.Random) -> None:
    name = rng.choice("abcdef")
    image = folder / f"{rng.choice(['', 's/'])}{name}.png"
    caption = image.with_suffix(".txt")
    match rng.randrange(7):
        case 0 | 1:
            add_image(image, rng.choice("xyz"), rng.randrange(1, 9))
        case 2:
            image.unlink(missing_ok=True)
        case 3:
            caption.unlink(missing_ok=True)
        case 4:
            image.parent.mkdir(exist_ok=True)
            image.write_bytes(b"no image")
        case 5:
            image.parent.mkdir(exist_ok=True)
            caption.write_bytes(rng.choice([b"caf\xe9", b"word"]))
        case 6:
            image.unlink(missing_ok=True)
            caption.unlink(missing_ok=True)


def test_after_any_changes_it_is_the_index_that_is_built_anew(tmp_path: Path) -> None:
    rng = random.Random(5)
    folders = [tmp_path / "one", tmp_path / "two"]
    add_image(folders[0] / "z.png")
    add_image(folders[1] / "z.png")
    for _ in range(60):
        for _ in range(rng.randrange(4)):
            change_something(rng.choice(folders), rng)
        kept = build_index(list(map(ImageFolder, folders)), tmp_path / "cache")
        fresh = build_index(list(map(ImageFolder, folders)), None)
        assert [*kept.index] == [*fresh.index]
        assert kept.bad_samples == fresh.bad_samples
        assert (kept.index.digest, kept.index.version) == (fresh.index.digest, fresh.index.version)
        assert kept.index.source_sizes == fresh.index.source_sizes
        opened = open_newest_index(tmp_path / "cache")
        assert opened is not None
        assert opened.bad_samples == fresh.bad_samples


def test_the_samples_of_several_sources_know_theirs(images: Path, tmp_path: Path) -> None:
    add_image(tmp_path / "more/a.png")
    (tmp_path / "more/b.txt").write_text("b")
    kept = build(images, tmp_path / "more")
    assert kept.index.source_sizes == [3, 1]
    assert [sample.source for sample in kept.index] == [0, 0, 0, 1]
    assert [bad.source for bad in kept.bad_samples] == [1]
    assert kept.index.path_of(kept.index[3]) == tmp_path / "more/a.png"


def test_a_picture_that_lies_on_its_side_is_measured_upright(images: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20)).save(images / "sub/b.jpg", exif=exif)
    [turned] = [sample for sample in build(images).index if sample.name == "sub/b.jpg"]
    assert (turned.width, turned.height) == (20, 40)


def test_only_a_full_check_sees_damage_behind_the_header(images: Path) -> None:
    Image.effect_noise((64, 64), 90).save(images / "a.png")
    whole = (images / "a.png").read_bytes()
    (images / "a.png").write_bytes(whole[: len(whole) // 2])
    assert names_of(build(images)) == ["a.png", "sub/b.jpg", "sub/c.png"]
    full = build_index([ImageFolder(images)], None, decode=True)
    assert names_of(full) == ["sub/b.jpg", "sub/c.png"]
    [bad] = full.bad_samples
    assert f"{images}/a.png: does not decode as an image (" in bad.problem


def test_progress_counts_to_the_end(images: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    build_index([ImageFolder(images)], None, lambda done, total: seen.append((done, total)))
    assert seen == [(1, None), (2, None), (3, None), (1, 3), (2, 3), (3, 3)]


def test_whether_it_is_current_is_known_without_a_look_at_the_images(images: Path, opened: list[str]) -> None:
    def is_current() -> bool:
        kept = open_newest_index(images.parent / "cache")
        assert kept is not None
        return is_index_current(kept)

    build(images)
    opened.clear()
    assert is_current()
    for change in (
        lambda: add_image(images / "new.png"),
        lambda: (images / "sub/c.txt").unlink(),
        lambda: os.rename(images / "a.png", images / "z.png"),
        lambda: shutil.rmtree(images / "sub"),
        lambda: (images / "metadata.jsonl").write_text('{"file_name": "new.png", "text": "a"}\n'),
        lambda: (images / "metadata.jsonl").write_text('{"file_name": "new.png", "text": "b"}\n'),
    ):
        change()
        assert not is_current()
        build(images)
        assert is_current()


def in_process(task: Callable[[], None]) -> int:
    """The exit code of a process of its own that runs `task`."""
    process = multiprocessing.get_context("fork").Process(target=task)
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def test_two_that_build_at_once_are_both_served(images: Path) -> None:
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(4)

    def build_with_others() -> None:
        barrier.wait()
        for number in range(5):
            if number:
                add_image(images / f"{os.getpid()}.png", str(number))
            names = names_of(build(images))
            assert len(names) == len(set(names)) >= 3

    processes = [context.Process(target=build_with_others) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert len(build(images).index) == 7
    assert not [*(images.parent / "cache").glob(".building-*")]


def refuse_unwritten(images: Path, why: str) -> None:
    with pytest.raises(UserError, match=rf"/cache: the index cannot be written \({why}\); .* data\.cache_folder"):
        build(images)


def test_a_folder_that_is_full_is_told_and_stays_as_it_was(images: Path) -> None:
    def fill() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
        refuse_unwritten(images, "File too large")

    assert in_process(fill) == 0
    assert [*(images.parent / "cache").iterdir()] == []
    before = build(images)
    add_image(images / "new.png")
    assert in_process(fill) == 0
    found = open_newest_index(images.parent / "cache")
    assert found is not None
    assert (found.path, names_of(found)) == (before.path, names_of(before))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")
def test_another_user_reads_what_is_there_and_is_told_what_cannot_be_written(images: Path) -> None:
    for folder in (images, *images.parents):
        if folder.stat().st_mode & 0o005 != 0o005 and folder != Path("/tmp"):
            folder.chmod(0o755)
    before = build(images)

    def read() -> None:
        os.setuid(65534)
        assert build(images).path == before.path

    def refuse() -> None:
        os.setuid(65534)
        refuse_unwritten(images, "Permission denied")

    assert in_process(read) == 0
    add_image(images / "new.png")
    assert in_process(refuse) == 0


def test_a_build_that_was_killed_leaves_the_index_as_it_was(images: Path) -> None:
    before = build(images)
    add_image(images / "new.png")

    def die() -> None:
        def end(done: int, total: int | None) -> None:
            if total is not None:
                os._exit(9)

        build_index([ImageFolder(images)], images.parent / "cache", end)

    assert in_process(die) == 9
    cache = images.parent / "cache"
    found = open_newest_index(cache)
    assert found is not None
    assert found.path == before.path
    [remains] = cache.glob(".building-*")
    os.utime(remains, (time.time() - 8 * 24 * 3600,) * 2)
    assert "new.png" in names_of(build(images))
    assert not remains.exists(), "after a week"


@pytest.mark.parametrize("name", ["dataset.arrow", "bad-samples.jsonl"])
def test_an_index_that_was_damaged_is_built_anew(images: Path, name: str) -> None:
    before = build(images)
    assert before.path is not None
    file = before.path.with_name(name)
    file.write_bytes(b"{" if name.endswith("jsonl") else file.read_bytes()[:-100])
    assert open_newest_index(images.parent / "cache") is None
    again = build(images)
    assert again.path != before.path
    assert [*again.index] == [*build_index([ImageFolder(images)], None).index]


def test_what_was_replaced_a_day_ago_is_removed(images: Path) -> None:
    cache = images.parent / "cache"
    for number in range(4):
        (images / "a.txt").write_text("a" * number)
        build(images)
    assert sorted(path.name for path in cache.iterdir()) == ["0001", "0002", "0003", "0004"]
    for name in ("0001", "0002", "0003"):
        os.utime(cache / name, (time.time() - 25 * 3600,) * 2)
    (images / "a.txt").write_text("new")
    build(images)
    assert sorted(path.name for path in cache.iterdir()) == ["0003", "0004", "0005"]


def test_bad_samples_are_told_apart_by_what_is_wrong() -> None:
    assert BadSample("a", "x", 0, b"1") == BadSample("a", "x", 0, b"2")
    assert BadSample("a", "x") != BadSample("a", "y")
