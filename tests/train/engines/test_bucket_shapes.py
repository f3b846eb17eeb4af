"""With buckets, several sources and a few fixed crops: the same run on every shape and engine."""

import json
from pathlib import Path

import pytest

from configs.schema import DataConfig
from tests.odd_images import make_bucket_data
from tests.ranks import run_ranks
from tests.train.engines.happened import Happened, relative

PROGRAM = Path(__file__).with_name("train_on_shape.py")
BATCH, STEPS = 12, 5
Case = tuple[int, str, int, int]  # ranks, engine, micro-batch, accumulation; the batch is 12 samples everywhere
FEW: list[Case] = [(1, "zero0", 6, 2), (2, "zero2", 2, 3), (2, "zero3", 3, 2), (4, "zero1", 1, 3)]
MORE: list[Case] = [
    (2, "reshard", 6, 1),
    (1, "zero1", 12, 1),
    (1, "zero3", 4, 3),
    (2, "zero0", 3, 2),
    (2, "keep", 1, 6),
    (4, "zero0", 3, 1),
]
MORE += [(4, "zero2", 3, 1), (4, "reshard", 1, 3), (4, "zero3", 3, 1), (3, "zero2", 4, 1), (6, "keep", 2, 1)]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    return make_bucket_data(tmp_path_factory.mktemp("odd"))


def record(folder: Path, pipeline: Path, data: dict[str, object], cases: list[Case]) -> dict[Case, Happened]:
    """ZeRO 3 comes last in a process: see test_elastic."""
    for ranks in sorted({case[0] for case in cases}):
        mine = sorted((case for case in cases if case[0] == ranks), key=lambda case: case[1] == "zero3")
        listed = json.dumps([[engine, "fp32", *cut] for _, engine, *cut in mine])
        run_ranks(ranks, PROGRAM, pipeline, json.dumps(data), folder, listed, STEPS=STEPS)
    return {case: Happened(folder, case[0], case[1], "fp32") for case in cases}


def check_same_run(happened: dict[Case, Happened]) -> None:
    base = happened[FEW[0]]
    for case, this in happened.items():
        assert sorted(this.by_position("noise")) == list(range(STEPS * BATCH)), case
        for key in ("noise", "posterior", "pixels", "tokens", "timesteps"):
            assert this.by_position(key) == base.by_position(key), (case, key)
        assert relative(this.losses, base.losses) <= 5e-6, case
        assert relative(this.norms, base.norms) <= 1e-4, case
    shapes = {tuple(one["shape"]) for one in base.passes}
    assert shapes == {(3, 32, 32), (3, 40, 24), (3, 24, 40)}


@pytest.mark.parametrize("cases", [FEW, pytest.param([FEW[0], *MORE], marks=pytest.mark.faults)], ids=["few", "more"])
def test_every_shape_trains_the_same_run(
    tmp_path: Path, pipeline_folder: Path, data: dict[str, object], cases: list[Case]
) -> None:
    """Five steps, which is two epochs and a micro-batch or two of the third."""
    assert DataConfig(**data).resolution == 32
    check_same_run(record(tmp_path, pipeline_folder, data, cases))
