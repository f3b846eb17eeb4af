"""Whatever is learnt: the same run on every shape and stage."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.ranks import run_ranks
from tests.runs import square_data
from tests.train.engines.happened import Happened, relative

PROGRAM = Path(__file__).with_name("train_on_shape.py")
BATCH, STEPS = 12, 4
OBJECTIVES: dict[str, dict[str, Any]] = {
    "noise": {"noise_offset": 0.1, "input_perturbation": 0.1},
    "debiased": {"loss_weighting": "debiased"},
    "zero terminal SNR": {"prediction": "v_prediction", "zero_terminal_snr": True, "loss_weighting": "min_snr"},
    "huber": {"prediction": "sample", "loss": "huber"},
    "a range": {"timesteps": {"first": 200, "last": 499}},
    "stratified": {"timesteps": {"stratified": True}},
    "everything": {
        "prediction": "v_prediction",
        "zero_terminal_snr": True,
        "noise_offset": 0.1,
        "input_perturbation": 0.1,
        "loss": "huber",
        "loss_weighting": "soft_min_snr",
        "timesteps": {"distribution": "logit_normal", "mean": 0.3, "std": 1.5, "first": 100, "stratified": True},
    },
}
Case = tuple[int, str, int, int]  # ranks, engine, micro-batch, accumulation
FEW: list[Case] = [(1, "zero0", 6, 2), (2, "zero2", 3, 2), (2, "reshard", 2, 3)]
ALL = [*FEW, (1, "zero1", 4, 3), (1, "zero2", 12, 1), (2, "zero0", 6, 1), (2, "zero1", 1, 6), (2, "keep", 6, 1)]
ALL += [(4, "zero0", 3, 1), (4, "zero1", 1, 3), (4, "zero2", 3, 1), (4, "reshard", 3, 1)]
ALL += [(1, "zero3", 6, 2), (2, "zero3", 3, 2), (4, "zero3", 3, 1)]  # last in a process: see test_elastic


def record(folder: Path, pipeline: Path, images: Path, cases: list[Case], objectives: dict[str, Any]) -> None:
    data, told = json.dumps(square_data(images)), json.dumps(objectives)
    for ranks in sorted({case[0] for case in cases}):
        for stage_3 in (False, True):
            mine = [case for case in cases if case[0] == ranks and (case[1] == "zero3") is stage_3]
            listed = json.dumps([[engine, "fp32", *cut] for _, engine, *cut in mine])
            if mine:
                run_ranks(ranks, PROGRAM, pipeline, data, folder, listed, told, STEPS=STEPS)


def check_same_run(folder: Path, objective: dict[str, Any], cases: list[Case]) -> None:
    happened = {case: Happened(folder, case[0], case[1], "fp32") for case in cases}
    base = happened[FEW[0]]
    drawn = ["noise", "posterior", "pixels", "tokens", "timesteps"]
    drawn += [
        key for key, its in (("offset", "noise_offset"), ("perturbation", "input_perturbation")) if its in objective
    ]
    for case, this in happened.items():
        assert sorted(this.by_position("noise")) == list(range(STEPS * BATCH)), case
        for key in drawn:
            assert this.by_position(key) == base.by_position(key), (case, key)
        assert relative(this.losses, base.losses) <= 5e-6, case
        assert relative(this.norms, base.norms) <= 1e-4, case


@pytest.mark.parametrize(
    ("names", "cases"),
    [(["everything"], FEW), pytest.param(list(OBJECTIVES), ALL, marks=pytest.mark.faults)],
    ids=["few", "all"],
)
def test_every_shape_trains_the_same_run(
    tmp_path: Path, pipeline_folder: Path, image_folder: Path, names: list[str], cases: list[Case]
) -> None:
    record(tmp_path, pipeline_folder, image_folder, cases, {name: OBJECTIVES[name] for name in names})
    for name in names:
        check_same_run(tmp_path / name, OBJECTIVES[name], cases)
