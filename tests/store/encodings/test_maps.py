"""The map of an index: found without reading it, whatever its size."""

import os

import numpy as np
import psutil
import pytest

from store.encodings.family import Family, FamilyFolder, make_key
from store.encodings.known import KnownEncodings
from store.encodings.maps import (
    ChunkMap,
    EncodingMap,
    SampleContent,
    ShardRow,
    list_chunk_maps,
    list_chunks,
    read_chunk_map,
    write_chunk_map,
    write_map,
)
from store.encodings.prune import prune_encodings
from store.encodings.shards import write_shard

KEYS = sorted(make_key(bytes([number])) for number in range(9))
A, NONE = SampleContent(b"stamp of image a", b"a" * 16), SampleContent(None, None)


@pytest.mark.parametrize(("samples", "chunks", "size"), [(1, 1, 8), (8, 1, 8), (20, 3, 8), (10_000, 64, 157)])
def test_chunks_depend_on_the_number_of_samples_alone(samples, chunks, size):
    found = list_chunks(samples)
    assert [number for chunk in found for number in chunk] == list(range(samples))
    assert (len(found), max(map(len, found))) == (chunks, min(size, samples))


def test_a_million_samples_have_chunks_of_a_bounded_size():
    assert max(map(len, list_chunks(1_000_000))) == 512


def test_the_maps_of_chunks_make_one_map(tmp_path):
    first = ChunkMap.from_places([A, NONE], {KEYS[4]: ShardRow("x", 1), KEYS[2]: ShardRow("y", 0)})
    second = ChunkMap.from_places(
        [SampleContent(None, b"\0" * 15 + b"b")], {KEYS[0]: ShardRow("y", 7), KEYS[4]: ShardRow("z", 3)}
    )
    write_chunk_map(tmp_path / "chunks", 0, first)
    write_chunk_map(tmp_path / "chunks", 1, second)
    assert list_chunk_maps(tmp_path / "chunks") == {0, 1}
    read = [read_chunk_map(tmp_path / "chunks", number) for number in (0, 1)]
    assert dict(read[0].list_places()) == {KEYS[4]: ShardRow("x", 1), KEYS[2]: ShardRow("y", 0)}
    write_map(tmp_path / "map", read)
    found = EncodingMap(tmp_path / "map")
    assert [found.find(key) for key in (KEYS[0], KEYS[2], KEYS[4])] == [
        ShardRow("y", 7),
        ShardRow("y", 0),
        ShardRow("x", 1),
    ]
    assert [found.find(key) for key in (KEYS[1], KEYS[8], bytes(16), b"\xff" * 16)] == [None] * 4
    assert [found.content_at(sample) for sample in range(3)] == [b"a" * 16, None, b"\0" * 15 + b"b"]


def test_what_was_read_before_is_known_by_its_stamp_from_the_newest_map(tmp_path):
    family = FamilyFolder(tmp_path)
    assert KnownEncodings(family).find_digest(A.stamp) is None
    digests = [b"b" * 16, b"a" * 16, bytes(15) + b"c"]
    for number, digest in enumerate(digests):
        stamps = [b"\xff" * 16, A.stamp, bytes(15) + b"s"]
        contents = [SampleContent(stamps[(number + i) % 3], digest) for i in range(3)]
        path = family.map_path(f"map {number}")
        path.parent.mkdir(parents=True)
        write_map(path, [ChunkMap.from_places([*contents, SampleContent(b"bad" + bytes(13), None)], {})])
        os.utime(path, (number, number))
        known = KnownEncodings(family)
        assert [known.find_digest(stamp) for stamp in stamps] == [digest] * 3
        assert [known.find_digest(stamp) for stamp in (bytes(16), b"bad" + bytes(13), b"m" * 16)] == [None] * 3
    path.write_bytes(path.read_bytes()[:-1])
    assert KnownEncodings(family).find_digest(A.stamp) is None, "half a map is none"


@pytest.mark.parametrize("length", [0, 5, 100, -1])
def test_half_a_map_is_none(tmp_path, length):
    chunk_map = ChunkMap.from_places([A], {KEYS[0]: ShardRow("x", 0)})
    write_map(tmp_path / "map", [chunk_map])
    write_chunk_map(tmp_path, 0, chunk_map)
    for path in (tmp_path / "map", tmp_path / "000000.safetensors"):
        path.write_bytes(path.read_bytes()[:length])
    assert read_chunk_map(tmp_path, 0) is None
    with pytest.raises(ValueError):  # noqa: PT011  (json's, mmap's or its own)
        EncodingMap(tmp_path / "map")


def test_a_million_entries_cost_no_memory(tmp_path):
    count = 1_000_000
    keys = np.frombuffer(np.random.default_rng(0).bytes(16 * count), "S16")
    rows = np.arange(count, dtype=np.uint32)
    write_map(
        tmp_path / "map", [ChunkMap(keys, keys, keys, rows % 1000, rows, [f"{name:032x}" for name in range(1000)])]
    )
    wanted = [(bytes(keys[row : row + 1].tobytes()), row) for row in range(0, count, 1000)]
    del keys, rows
    before = psutil.Process().memory_full_info().uss
    found = EncodingMap(tmp_path / "map")
    assert all(found.find(key).row == row for key, row in wanted)
    mapped = 2 * 16 * count  # pages of the file that were looked at count, as nobody else has them
    assert psutil.Process().memory_full_info().uss - before < mapped + 10_000_000
    assert found.content_at(999_999) is not None


@pytest.fixture
def family(tmp_path) -> FamilyFolder:
    kind = Family("moments", {"weights": "abc"}, {})
    folder = FamilyFolder.for_family(tmp_path, kind)
    folder.make(kind)
    return folder


def test_what_another_index_left_is_known_but_not_what_is_damaged(family):
    names = [write_shard(family.shards_path, "F32", (1,), [(key, b"abcd")]) for key in KEYS[:3]]
    (family.shards_path / names[1]).write_bytes(b"half of")
    raw = bytearray((family.shards_path / names[2]).read_bytes())
    raw[raw.index(b"abcd")] ^= 1
    (family.shards_path / names[2]).write_bytes(raw)
    known = KnownEncodings(family)
    assert [known.find(key) for key in KEYS[:3]] == [ShardRow(names[0], 0), None, ShardRow(names[2], 0)]
    assert KnownEncodings(family, verify=True).find(KEYS[2]) is None
    known.add({KEYS[5]: ShardRow("new", 3)})
    assert known.find(KEYS[5]) == ShardRow("new", 3)


def test_of_twins_the_whole_one_is_found(family):
    old, new = (write_shard(family.shards_path, "F32", (1,), [(KEYS[0], b"abcd")]) for _ in range(2))
    for newest, other in ((old, new), (new, old)):
        os.utime(family.shards_path / newest, (2, 2))
        os.utime(family.shards_path / other, (1, 1))
        assert KnownEncodings(family).find(KEYS[0]) == ShardRow(newest, 0)
    raw = bytearray((family.shards_path / new).read_bytes())
    raw[raw.index(b"abcd")] ^= 1
    (family.shards_path / new).write_bytes(raw)
    assert KnownEncodings(family, verify=True).find(KEYS[0]) == ShardRow(old, 0)


def test_every_fact_makes_another_family(tmp_path):
    one = Family("moments", {"weights": "abc", "dtype": "fp32"}, {"model": "a"})
    assert one.digest == Family("moments", {"dtype": "fp32", "weights": "abc"}, {"model": "b"}).digest
    others = [Family("states", one.facts, {}), Family("moments", {**one.facts, "dtype": "bf16"}, {})]
    assert len({one.digest, *(other.digest for other in others)}) == 3


def test_pruning_removes_what_no_run_used_and_keeps_what_may_be_needed(family, tmp_path):
    names = [write_shard(family.shards_path, "F32", (1,), [(key, b"abcd")]) for key in KEYS[:4]]
    (family.shards_path / ".left-by-a-kill").write_bytes(b"half")
    for map_name, shard in (("used", names[0]), ("unused", names[1])):
        chunk_map = ChunkMap.from_places([NONE], {KEYS[0]: ShardRow(shard, 0)})
        write_chunk_map(family.chunks_path(map_name), 0, chunk_map)
        write_map(family.map_path(map_name), [chunk_map])
    write_chunk_map(family.chunks_path("begun"), 0, ChunkMap.from_places([NONE], {KEYS[2]: ShardRow(names[2], 0)}))
    old = 40 * 86400
    for path in (*family.shards_path.iterdir(), family.map_path("unused")):
        os.utime(path, (path.stat().st_mtime - old,) * 2)
    new = write_shard(family.shards_path, "F32", (1,), [(KEYS[5], b"abcd")])
    [pruned] = prune_encodings(tmp_path)
    assert (pruned.maps, pruned.shards, pruned.refused) == (1, 3, [])
    assert {path.name for path in family.shards_path.iterdir()} == {names[0], names[2], new}
    assert {path.name for path in family.maps_path.iterdir()} == {"used", "begun"}
