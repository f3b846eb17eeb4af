"""The same run on 1 to 6 ranks and every engine: the same samples, the same randomness, the same losses."""

import json
from pathlib import Path

import pytest

from tests.ranks import run_ranks
from tests.train.engines.happened import Happened, relative

PROGRAM = Path(__file__).with_name("train_on_shape.py")
STEPS = 10
# ranks → (engine, precision, micro-batch, accumulation); the batch is 12 samples everywhere
CASES = {
    1: [("zero0", "fp32", 6, 2), ("zero1", "fp32", 12, 1), ("reshard", "fp32", 6, 2)],
    2: [("zero0", "fp32", 3, 2), ("zero1", "fp32", 2, 3), ("zero2", "fp32", 6, 1), ("keep", "fp32", 3, 2)],
    3: [("zero1", "fp32", 4, 1), ("keep", "fp32", 2, 2)],
    4: [("zero2", "fp32", 1, 3), ("reshard", "fp32", 3, 1)],
    6: [("zero0", "fp32", 2, 1), ("reshard", "fp32", 1, 2)],
}
SIXTEEN = {
    1: [("zero2", "bf16", 6, 2)],
    2: [("zero1", "bf16", 6, 1), ("reshard", "bf16", 3, 2)],
    3: [("zero2", "bf16", 4, 1)],
    4: [("keep", "bf16", 3, 1)],
    6: [("zero2", "bf16", 1, 2)],
}
ZERO3 = {1: [("zero3", "fp32", 6, 2)], 2: [("zero3", "fp32", 3, 2), ("zero3", "bf16", 3, 2)]}
ZERO3 |= {3: [("zero3", "fp32", 2, 2)]}  # comes last: see test_elastic
CASES = {ranks: CASES[ranks] + SIXTEEN[ranks] + ZERO3.get(ranks, []) for ranks in CASES}
RUNS = [(ranks, *case) for ranks, cases in CASES.items() for case in cases]


@pytest.fixture(scope="module")
def happened(pipeline_folder, image_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("records")
    data = {"images": str(image_folder), "resolution": 32, "crop": "random", "flip": True, "workers": 0}
    for ranks, cases in CASES.items():
        run_ranks(ranks, PROGRAM, pipeline_folder, json.dumps(data), folder, json.dumps(cases), STEPS=STEPS)
    return {run[:3]: Happened(folder, *run[:3]) for run in RUNS}


@pytest.mark.parametrize(("ranks", "engine", "precision", "micro", "accumulation"), RUNS)
def test_every_shape_consumes_the_same_stream(happened, ranks, engine, precision, micro, accumulation):
    this, base = happened[ranks, engine, precision], happened[1, "zero0", "fp32"]
    assert sorted(this.by_position("noise")) == list(range(STEPS * 12)), "each position exactly once, none left out"
    for key in ("noise", "posterior", "pixels", "tokens", "timesteps"):
        assert this.by_position(key) == base.by_position(key), key


@pytest.mark.parametrize(("ranks", "engine", "precision", "micro", "accumulation"), RUNS)
def test_losses_agree_on_every_shape(happened, ranks, engine, precision, micro, accumulation):
    this, base = happened[ranks, engine, precision], happened[1, "zero0", "fp32"]
    if precision == "fp32":
        assert relative(this.losses, base.losses) <= 5e-6
        assert relative(this.norms, base.norms) <= 1e-4
    else:
        assert relative(this.losses, happened[1, "zero2", "bf16"].losses) <= 1e-2
        assert relative(this.losses, base.losses) <= 3e-2, "bf16 trains the same thing as fp32"


def test_first_step_losses_are_the_same_bits_where_micro_batches_cut_the_same_positions(happened):
    compared = 0
    for precision in ("fp32", "bf16"):
        seen: dict[tuple[int, ...], float] = {}
        for (_, _, kind), this in happened.items():
            if kind != precision:
                continue
            for one in this.passes:
                positions = tuple(one["positions"])
                if positions[0] < 12:
                    assert one["loss"] == seen.setdefault(positions, one["loss"])
                    compared += 1
    assert compared > 30


def test_training_changed_the_weights_the_same_way(happened):
    base = happened[1, "zero0", "fp32"].weights
    for ranks, engine, precision, *_ in RUNS:
        if precision == "fp32":
            for name, tensor in happened[ranks, engine, precision].weights.items():
                assert (tensor - base[name]).norm() <= 1e-4 * base[name].norm(), (ranks, engine, name)
    assert happened[1, "zero0", "fp32"].losses[-1] != happened[1, "zero0", "fp32"].losses[0]
