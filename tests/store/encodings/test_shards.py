"""Shards: what is written is read back, and nothing else ever is."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from store.encodings.shards import DamagedEncoding, Encoding, Shard, ShardReader, write_shard

KEYS = [bytes([number]) * 16 for number in range(3)]
ROWS = [np.full((2, 3), number, "<f4") for number in range(3)]


@pytest.fixture
def shard(tmp_path) -> Path:
    rows = [(key, row.tobytes()) for key, row in zip(KEYS, ROWS, strict=True)]
    return tmp_path / write_shard(tmp_path, "F32", (2, 3), rows)


def test_what_was_written_is_read_by_its_key(shard):
    reader = ShardReader(shard.parent)
    assert reader.list_names() == {shard.name}
    for number, key in enumerate(KEYS):
        assert reader.read(shard.name, number, key) == Encoding("F32", (2, 3), bytearray(ROWS[number].tobytes()))


def test_the_library_reads_it_too(shard):
    tensors = load_file(shard)
    assert np.array_equal(tensors["encodings"], ROWS)
    assert tensors["keys"].tobytes() == b"".join(KEYS)


def test_every_flipped_bit_of_an_encoding_or_of_its_key_is_found(shard):
    whole = shard.read_bytes()
    begin = whole.index(ROWS[1].tobytes())
    keys = whole.index(KEYS[0] + KEYS[1]) + 16
    for byte in (*range(begin, begin + 24), *range(keys, keys + 16)):
        raw = bytearray(whole)
        raw[byte] ^= 1 << byte % 8
        shard.write_bytes(raw)
        with pytest.raises(DamagedEncoding, match=shard.name):
            Shard(shard).read(1, KEYS[1])
        assert Shard(shard).read(2, KEYS[2]).values == ROWS[2].tobytes(), "and the others are as good as before"


def test_an_encoding_under_another_key_is_not_taken_for_it(shard):
    with pytest.raises(DamagedEncoding, match="row 1 has another key"):
        Shard(shard).read(1, KEYS[2])


@pytest.mark.parametrize("length", [0, 4, 20, 300])
def test_half_a_file_is_damaged(shard, length):
    shard.write_bytes(shard.read_bytes()[:length])
    with pytest.raises(DamagedEncoding, match=rf"{shard.name}: cannot be read"):
        Shard(shard)


def test_what_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_shard(tmp_path, "F32", (2, 3), [(KEYS[0], ROWS[0].tobytes())])
    assert list(tmp_path.iterdir()) == []


def test_more_shards_than_stay_open_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr("store.encodings.shards._OPENED", 2)
    names = [write_shard(tmp_path, "BF16", (4,), [(key, bytes(8))]) for key in KEYS]
    reader = ShardReader(tmp_path)
    for name, key in [*zip(names, KEYS, strict=True)] * 2:
        assert reader.read(name, 0, key).dtype == "BF16"


def test_threads_may_share_a_reader(tmp_path, monkeypatch):
    monkeypatch.setattr("store.encodings.shards._OPENED", 2)
    names = [write_shard(tmp_path, "F32", (1,), [(key, b"abcd")]) for key in KEYS]
    reader = ShardReader(tmp_path)

    def read(number: int) -> bytes:
        return bytes(reader.read(names[number % 3], 0, KEYS[number % 3]).values)

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(read, range(5000))) == {b"abcd"}
