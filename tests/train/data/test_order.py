"""The order of the stream: every sample as often as it should be, on any number of samples, grains and buckets."""

import subprocess
import sys
from collections import Counter
from fractions import Fraction
from itertools import product
from math import ceil, floor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.errors import LockstepError
from configs.schema import RunConfig
from configs.solve.buckets import CropSize
from store.dataset.index import Index
from store.dataset.sample import Sample
from train.data.order import Bucket, GrainOrder, Order, PlainOrder, list_buckets, make_order

SQUARE = CropSize(64, 64)


def plain(size: int, seed: int) -> PlainOrder:
    return PlainOrder(Bucket(range(size), SQUARE), seed)


def grains(sizes: list[int], grain: int, seed: int = 0, repeats: list[Fraction] | None = None) -> GrainOrder:
    """Buckets of so many samples, one after the other in the index."""
    ends = np.cumsum(sizes)
    rows = [range(end - size, end) for size, end in zip(sizes, ends.tolist(), strict=True)]
    shares = repeats or [Fraction(1)] * len(sizes)
    return GrainOrder([Bucket(own, SQUARE, share) for own, share in zip(rows, shares, strict=True)], grain, seed)


def rows_of(order: Order, positions: range) -> list[int]:
    return [place.row() for place in order.find_places(positions)]


def test_an_epoch_of_one_bucket_is_the_dataset() -> None:
    assert sorted(rows_of(plain(20, 0), range(20, 40))) == list(range(20))
    assert rows_of(plain(20, 0), range(20)) != rows_of(plain(20, 0), range(20, 40))


def test_golden_places() -> None:
    """These numbers are a promise: other samples at these positions would be another run."""
    assert rows_of(plain(10, 0), range(12)) == [3, 9, 4, 0, 8, 5, 1, 7, 6, 2, 7, 5]
    assert rows_of(plain(1000, 2**63), range(7000, 7004)) == [814, 737, 609, 544]
    assert rows_of(grains([5, 7, 3], 2), range(16)) == [3, 1, 5, 10, 2, 4, 7, 8, 12, 14, 9, 6, 7, 5, 8, 9]
    mixed = grains([500, 20], 1, seed=2**63, repeats=[Fraction(1, 2), Fraction(3)])
    assert rows_of(mixed, range(3100, 3110)) == [235, 244, 504, 503, 508, 9, 238, 340, 401, 314]


@pytest.mark.parametrize("order", [plain(20, 7), grains([20, 9, 4], 4, 7)], ids=["plain", "grains"])
def test_a_range_is_what_its_positions_are_alone(order: Order) -> None:
    alone = [row for position in range(15, 130) for row in rows_of(order, range(position, position + 1))]
    assert rows_of(order, range(15, 130)) == alone


def check_epochs(order: GrainOrder, epochs: int) -> None:
    """Contract 2, by counting: after e epochs each sample of bucket b was seen ⌊c⌋ or ⌈c⌉ times, and each grain is of
    one bucket."""
    grain, position, seen = order.grain, 0, Counter[int]()
    for epoch in range(1, epochs + 1):
        filled = [floor(epoch * len(b.rows) * b.repeats / grain) for b in order.buckets]
        end = grain * sum(filled)
        places = order.find_places(range(position, end))
        for first in range(0, len(places), grain):
            assert len({id(place.bucket) for place in places[first : first + grain]}) == 1
        seen.update(place.row() for place in places)
        position = end
        for bucket, own in zip(order.buckets, filled, strict=True):
            share = Fraction(grain * own, len(bucket.rows))
            counts = [seen[row] for row in bucket.rows]
            assert sum(counts) == grain * own
            assert min(counts) >= floor(share)
            assert max(counts) <= ceil(share)


def test_every_sample_is_seen_as_often_as_any_other_on_all_small_sizes() -> None:
    for sizes in (*product(range(1, 8)), *product(range(1, 6), repeat=2), *product((1, 2, 5), repeat=3)):
        for grain in (1, 2, 3, 4, 7):
            check_epochs(grains(list(sizes), grain, seed=grain), epochs=5)


@settings(max_examples=100, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 60), min_size=1, max_size=7),
    grain=st.integers(1, 40),
    seed=st.integers(0, 2**64 - 1),
    shares=st.lists(st.fractions(Fraction(1, 9), 3, max_denominator=9), min_size=7, max_size=7),
    epochs=st.integers(1, 4),
)
def test_every_sample_is_seen_as_often_as_any_other(
    sizes: list[int], grain: int, seed: int, shares: list[Fraction], epochs: int
) -> None:
    check_epochs(grains(sizes, grain, seed, shares[: len(sizes)]), epochs)


def test_any_position_of_six_billion_samples_is_found_without_those_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = [6 * 10**9 // 820 * (number + 1) for number in range(40)]
    order, counted = grains(sizes, 32), []
    monkeypatch.setattr(
        order, "_count_grains", lambda epoch: counted.append(epoch) or type(order)._count_grains(order, epoch)
    )
    for position in (5_999_999_999, 2**62):
        [place] = order.find_places([position])
        around = order.find_places(range(position // 32 * 32, position // 32 * 32 + 32))
        assert around[position % 32] == place
        assert len({(id(other.bucket), other.number) for other in around}) == 32
    assert len(counted) < 40, "a few sums over the buckets each, wherever the position is"


def test_what_stands_for_a_bad_sample_is_of_its_bucket() -> None:
    order = grains([3, 4], 1)
    for place in order.find_places(range(14)):
        assert sorted(place.row(offset) for offset in range(len(place.bucket.rows))) == list(place.bucket.rows)


def index(sizes: list[tuple[int, int]], sources: list[int]) -> Index:
    """Images of these widths and heights; `sources`: how many each source has."""
    owners = [source for source, count in enumerate(sources) for _ in range(count)]
    samples = [
        Sample(source, f"{number}.png", f"{number}.png", 0, 1, width, height, ("a",))
        for number, (source, (width, height)) in enumerate(zip(owners, sizes, strict=True))
    ]
    return Index.from_samples(samples, ["/a"] * len(sources))


def configure(**data: object) -> RunConfig:
    return RunConfig(name="a", model="m", data=data, batch=12)


SHAPES = [(100, 100), (200, 100), (100, 200), (90, 100), (1000, 300)]


def test_a_bucket_is_a_source_and_a_size() -> None:
    buckets = {"side": 32, "step": 8}
    config = configure(sources=[{"images": "/a"}, {"images": "/b", "repeats": 0.5}], buckets=buckets)
    found = list_buckets(config, index(SHAPES + SHAPES[:2], [5, 2]))
    described = [(list(bucket.rows), str(bucket.size), bucket.repeats) for bucket in found]
    whole, half = Fraction(1), Fraction(1, 2)
    assert described == [
        ([2], "24×40", whole),
        ([0, 3], "32×32", whole),
        ([1, 4], "40×24", whole),
        ([5], "32×32", half),
        ([6], "40×24", half),
    ]


@pytest.mark.parametrize(
    ("data", "sources", "kind"),
    [
        ({"images": "/a"}, [5], PlainOrder),
        ({"sources": [{"images": "/a"}]}, [5], PlainOrder),
        ({"sources": [{"images": "/a", "repeats": 2}]}, [5], GrainOrder),
        ({"sources": [{"images": "/a"}, {"images": "/b"}]}, [4, 1], GrainOrder),
        ({"images": "/a", "buckets": {"side": 32, "step": 8}}, [5], GrainOrder),
    ],
)
def test_one_folder_keeps_the_order_that_earlier_versions_gave_it(
    data: dict[str, object], sources: list[int], kind: type[Order]
) -> None:
    order = make_order(configure(**data), index(SHAPES, sources))
    assert isinstance(order, kind)
    assert (rows_of(order, range(60)) == rows_of(plain(5, 0), range(60))) is (kind is PlainOrder)


def test_a_rank_keeps_four_bytes_of_each_sample() -> None:
    """Of a million in 17 buckets, less than 30 MB of its own memory, also while they are sorted."""
    done = subprocess.run([sys.executable, "-c", _GROWTH], capture_output=True, text=True, check=True)
    kept, peak = map(float, done.stdout.split())
    assert kept < 10
    assert peak < 30


_GROWTH = """
import re
from pathlib import Path
from types import SimpleNamespace
import numpy as np
from configs.schema import RunConfig
from train.data.order import make_order

class Many(SimpleNamespace):
    def __len__(self):
        return len(self.widths)

def read_mebibytes(key):
    return int(re.search(rf"{key}:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024

def make_index(size):
    draw = np.random.default_rng(0)
    widths, heights = draw.integers(200, 2000, (2, size), dtype=np.int32)
    return Many(widths=widths, heights=heights, source_sizes=[size])

buckets = {"side": 1024, "max_ratio": 4}
config = RunConfig(name="a", model="m", data={"images": "/a", "buckets": buckets}, batch=32)
make_order(config, make_index(1000))
index = make_index(1_000_000)
kept, peak = read_mebibytes("RssAnon"), read_mebibytes("VmHWM")
order = make_order(config, index)
assert len(order.buckets) == 17
print(read_mebibytes("RssAnon") - kept, read_mebibytes("VmHWM") - peak)
"""


def test_images_of_unknown_size_meet_no_buckets() -> None:
    config = configure(images="/a", buckets={"side": 32, "step": 8})
    with pytest.raises(LockstepError, match="an earlier version"):
        make_order(config, index([(0, 0), (3, 4)], [2]))
    assert isinstance(make_order(configure(images="/a"), index([(0, 0)], [1])), PlainOrder)
