"""The cache of encodings (contract 7) on real ranks: whoever builds it, and however often they are killed, it holds the
same; training takes from it what it would have encoded itself, and needs none of it."""

import hashlib
import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from store.encodings.family import list_path
from store.encodings.maps import EncodingMap
from store.encodings.shards import Shard
from store.run.end import End
from store.run.run_dir import RunDir
from tests.ranks import start_ranks
from tests.runs import new_run, next_attempt, read_losses

PROGRAM = Path(__file__).with_name("encode_attempt.py")
COUNT = 40  # images, each in two views
KILLS = [3, pytest.param(20, marks=pytest.mark.faults)]


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """Of several sizes."""
    folder = tmp_path_factory.mktemp("data") / "images"
    folder.mkdir()
    draw = np.random.default_rng(0)
    for number in range(COUNT):
        pixels = draw.integers(0, 256, (36 + number % 3, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:03d}.png")
        (folder / f"{number:03d}.txt").write_text(f"a red circle {number % 30}")
    return folder


def make_run(folder: Path, pipeline: Path, images: Path, cache: Path, **changes) -> RunDir:
    data = {"images": str(images), "resolution": 32, "flip": True, "workers": 1, "cache_folder": str(cache)}
    data |= {"cache": "all", "caption_dropout": 0.3} | changes.pop("data", {})
    settings = {"engine": "fsdp2", "steps": 4, "batch": 12, "micro_batch": 3}
    return new_run(folder, pipeline, images, data=data, **(settings | changes))


def attempt(run: RunDir, ranks: int, fault: dict | None = None, *, only_encode: bool = True) -> list[int]:
    started = start_ranks(
        ranks, PROGRAM, run.path, next_attempt(run, ranks, only_encode=only_encode).number, json.dumps(fault or {})
    )
    return started.wait()


def log(run: RunDir, number: int, rank: int = 0) -> str:
    return (run.attempt(number).log_path(rank)).read_text()


def content(cache: Path) -> dict[tuple[str, bytes], tuple]:
    """All that the maps lead to, read and verified: (family, key) → encoding."""
    found = {}
    for path in list_path(cache).glob("*/maps/*/map.safetensors"):
        family = path.parents[2]
        encodings = EncodingMap(path)
        for shard in {name: Shard(family / "shards" / name) for name in encodings.shards}.values():
            for key in shard.list_keys():
                place = encodings.find(key)
                if place is not None and place.shard == shard.path.name:
                    encoding = shard.read(place.row, key)
                    found[family.name, key] = (encoding.dtype, encoding.shape, bytes(encoding.values))
    return found


def count_encoded(run: RunDir, number: int) -> int:
    return sum(int(path.read_text()) for path in run.path.glob(f"encoded-{number}-*"))


@pytest.fixture(scope="module")
def built(tmp_path_factory, pipeline_folder, images) -> Path:
    """A cache that one rank built in one go."""
    folder = tmp_path_factory.mktemp("built")
    run = make_run(folder / "run", pipeline_folder, images, folder / "cache")
    assert attempt(run, 1) == [0], log(run, 1)
    assert End.read(run.attempt(1).end_path) == End("encoded", 0, None)
    assert count_encoded(run, 1) == 2 * COUNT + 31, "two views of each image, 30 captions and the empty one"
    return folder / "cache"


@pytest.mark.parametrize("kills", KILLS)
def test_four_ranks_that_are_killed_build_the_same_as_one(tmp_path, pipeline_folder, images, built, kills):
    run = make_run(tmp_path / "run", pipeline_folder, images, tmp_path / "cache")
    draw = random.Random(kills)
    killed = 0
    while killed < kills:
        codes = attempt(run, 4, {"kill_at": [draw.randrange(1, 7) for _ in range(4)]})
        killed += -9 in codes
        if -9 not in codes:  # nothing was left to be killed at: once more from the beginning
            assert (codes, content(tmp_path / "cache")) == ([0] * 4, content(built))
            shutil.rmtree(tmp_path / "cache")
        for path in list_path(tmp_path / "cache").glob("*/shards/[!.]*"):
            shard = Shard(path)
            assert all(shard.read(row, key) for row, key in enumerate(shard.list_keys())), "what is visible is whole"
    assert attempt(run, 4) == [0] * 4
    assert content(tmp_path / "cache") == content(built)


def test_of_a_new_version_of_the_images_only_the_new_ones_are_read(tmp_path, pipeline_folder, images):
    changed = tmp_path / "images"
    shutil.copytree(images, changed)
    run = make_run(tmp_path / "run", pipeline_folder, changed, tmp_path / "cache", data={"cache": "latents"})
    assert attempt(run, 1) == [0], log(run, 1)
    assert log(run, 1).count("opened ") == COUNT
    for name in ("007.png", "040.png"):
        Image.fromarray(np.random.default_rng(len(name)).integers(0, 256, (37, 40, 3), dtype=np.uint8)).save(
            changed / name
        )
    (changed / "040.txt").write_text("another")
    again = make_run(tmp_path / "again", pipeline_folder, changed, tmp_path / "cache", data={"cache": "latents"})
    assert attempt(again, 1) == [0], log(again, 1)
    opened = [line for line in log(again, 1).splitlines() if line.startswith("opened ")]
    assert sorted(opened) == ["opened 007.png", "opened 040.png"]


def test_one_changed_image_encodes_one_image(tmp_path, pipeline_folder, images, built):
    """Of the same size in bytes, and with the same name."""
    changed, cache = tmp_path / "images", tmp_path / "cache"
    shutil.copytree(images, changed)
    shutil.copytree(built, cache)
    path = changed / "007.png"
    size = path.stat().st_size
    Image.fromarray(np.random.default_rng(7).integers(0, 256, (37, 40, 3), dtype=np.uint8)).save(path)
    assert path.stat().st_size == size, "a noisy PNG is as large as another"
    run = make_run(tmp_path / "run", pipeline_folder, changed, cache)
    assert attempt(run, 2) == [0, 0], log(run, 1)
    assert count_encoded(run, 1) == 2
    assert len(content(cache).keys() - content(built).keys()) == 2


def test_with_buckets_each_image_has_its_own_encodings(tmp_path, pipeline_folder, images):
    """Of one shape a shard, as far as there are enough of it; training finds them all."""
    buckets = {"resolution": 32, "buckets": {"side": 32, "step": 8, "max_ratio": 2}, "cache": "latents"}
    wide = tmp_path / "images"
    shutil.copytree(images, wide)
    for number in range(0, COUNT, 3):
        Image.open(wide / f"{number:03d}.png").resize((60, 36)).save(wide / f"{number:03d}.png")
    run = make_run(tmp_path / "run", pipeline_folder, wide, tmp_path / "cache", data=buckets, steps=2)
    assert attempt(run, 1, only_encode=False) == [0], log(run, 1)
    assert count_encoded(run, 1) == 2 * COUNT
    assert "not in it" not in log(run, 1)
    [path] = list_path(tmp_path / "cache").glob("moments-*/maps/*/map.safetensors")
    for number in range(COUNT):
        digest = hashlib.sha256((wide / f"{number:03d}.png").read_bytes()).digest()
        assert EncodingMap(path).content_at(number) == digest[:16]
    assert len(list(path.parents[2].glob("shards/*"))) <= 6, "5 chunks, of which one has two shapes"


def test_a_lost_map_is_made_anew_of_what_its_chunks_say(tmp_path, pipeline_folder, images, built):
    cache = tmp_path / "cache"
    shutil.copytree(built, cache)
    for path in list_path(cache).glob("*/maps/*/map.safetensors"):
        path.unlink()
    run = make_run(tmp_path / "run", pipeline_folder, images, cache)
    assert attempt(run, 1) == [0], log(run, 1)
    assert count_encoded(run, 1) == 0
    assert content(cache) == content(built)


def flip_bits(cache: Path) -> int:
    """One in each encoding of the first shard of moments; of how many."""
    path = min(list_path(cache).glob("moments-*/shards/*"))
    shard, raw = Shard(path), bytearray(path.read_bytes())
    for row in range(shard.count):
        raw[int.from_bytes(raw[:8], "little") + 8 + row * 4 * int(np.prod(shard.shape)) + 100] ^= 4
    path.write_bytes(raw)
    return shard.count


@pytest.fixture(scope="module")
def uncached(tmp_path_factory, pipeline_folder, images) -> list[float]:
    folder = tmp_path_factory.mktemp("uncached")
    run = make_run(folder / "run", pipeline_folder, images, folder / "cache", data={"cache": "off"}, micro_batch=6)
    assert attempt(run, 1, only_encode=False) == [0], log(run, 1)
    assert not (folder / "cache").exists()
    return read_losses(run)


def test_the_losses_are_those_of_a_run_without_cache_also_where_it_is_damaged(
    tmp_path, pipeline_folder, images, built, uncached
):
    """On another shape. What is damaged is encoded by the rank that needs it, and mended by `lockstep cache`."""
    cache = tmp_path / "cache"
    shutil.copytree(built, cache)
    damaged = flip_bits(cache)
    run = make_run(tmp_path / "run", pipeline_folder, images, cache)
    assert attempt(run, 2, only_encode=False) == [0, 0], log(run, 1)
    np.testing.assert_allclose(read_losses(run), uncached, rtol=1e-5)
    assert count_encoded(run, 1) == 0
    told = log(run, 1) + log(run, 1, 1)
    assert "is damaged" in told
    assert "loading vae, which the cache had spared, for an image that is not in it" in told

    mend = make_run(tmp_path / "mend", pipeline_folder, images, cache)
    assert attempt(mend, 2) == [0, 0], log(mend, 1)
    assert count_encoded(mend, 1) == damaged
    assert content(cache) == content(built)


def test_a_notice_while_it_encodes_ends_the_attempt_and_the_next_goes_on(tmp_path, pipeline_folder, images, built):
    run = make_run(tmp_path / "run", pipeline_folder, images, tmp_path / "cache", steps=1)
    assert attempt(run, 2, {"stop_at": [1, 2]}, only_encode=False) == [75, 75], log(run, 1)
    assert End.read(run.attempt(1).end_path) == End("notice", 0, None, "SIGTERM")
    assert attempt(run, 2, only_encode=False) == [0, 0], log(run, 2)
    assert content(tmp_path / "cache") == content(built)
    assert len(read_losses(run)) == 1


def test_a_full_disk_is_one_sentence_and_leaves_nothing_half_written(tmp_path, pipeline_folder, images):
    run = make_run(tmp_path / "run", pipeline_folder, images, tmp_path / "cache")
    assert attempt(run, 1, {"full_at": 4}) == [2], log(run, 1)
    [report] = run.attempt(1).path.glob("failures/*.json")
    message = json.loads(report.read_text())["message"]
    assert "full; free some of it, name another folder with data.cache_folder, or write data.cache: off" in message
    assert [path for path in (tmp_path / "cache").rglob(".*") if path.is_file()] == []


def test_ranks_load_only_what_is_not_cached_and_say_so_where_pictures_need_it(tmp_path, pipeline_folder, images, built):
    """From a cache that is complete, on a disk that is read-only."""
    pictures = {"prompts": ["a fox"], "timesteps": 1}
    told = "loading {0}, which the cache had spared, for sample pictures"
    for name, changes, loaded in (
        ("all", {}, []),
        ("latents", {"data": {"cache": "latents"}}, ["load_part text_encoder"]),
        ("drawing", {"pictures": pictures}, [told.format("vae"), "load_part vae", told.format("text_encoder")]),
    ):
        run = make_run(tmp_path / name, pipeline_folder, images, built, steps=1, **changes)
        assert attempt(run, 1, {"read_only": True}, only_encode=False) == [0], log(run, 1)
        assert [line for line in log(run, 1).splitlines() if line.startswith("load")][:3] == loaded
