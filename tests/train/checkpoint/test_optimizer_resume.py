"""Every optimizer's checkpoints: the same bits on the same shape, the same run elsewhere, and damage is found."""

import json
import shutil
from pathlib import Path

import pytest

from store.checkpoint import checkpoints
from store.run.run_dir import RunDir
from tests.ranks import run_ranks
from tests.runs import square_data
from tests.train.checkpoint.test_elastic import Shape, is_zero3, name

PROGRAM = Path(__file__).with_name("resume_optimizers.py")
MORE = 4
# Of the losses after a resume on another shape, relative: other blocks of 8 bits have other scales.
TOLERANCE = {"adamw": 5e-6, "adafactor": 5e-6, "adamw_8bit": 1e-4}
FEW: list[tuple[str, Shape, list[Shape]]] = [  # optimizer, where a run is saved, where else it goes on
    ("adamw_8bit", (2, "zero2", "fp32"), [(1, "zero0", "fp32")]),
    ("adafactor", (2, "zero0", "fp32"), [(1, "reshard", "fp32")]),
]
ELSEWHERE: list[Shape] = [(1, "zero1", "fp32"), (2, "keep", "fp32"), (3, "zero0", "fp32"), (3, "reshard", "fp32")]
ELSEWHERE += [(1, "zero3", "fp32"), (3, "zero3", "fp32")]
ALL = [(kind, source, ELSEWHERE) for kind in ("adamw", "adamw_8bit") for source in ((2, "zero2", "fp32"), *ELSEWHERE)]
ALL += [("adafactor", (2, "zero0", "fp32"), [(1, "zero0", "fp32"), (3, "zero0", "fp32"), (1, "keep", "fp32")])]
ALL += [("adafactor", (1, "reshard", "fp32"), [(2, "zero0", "fp32")])]


def run_cases(folders: tuple[object, ...], cases: list[tuple[str, Shape, list[str]]]) -> None:
    """Each in a process of its number of ranks, with all others of it."""
    for ranks in sorted({shape[0] for _, shape, _ in cases}):
        mine = sorted((case for case in cases if case[1][0] == ranks), key=lambda case: is_zero3(case[1]))
        listed = [[kind, *shape[1:], sources] for kind, shape, sources in mine]
        run_ranks(ranks, PROGRAM, *folders, json.dumps(listed), MORE=MORE)


def check_all(root: Path, pipeline: Path, data: str, runs: list[tuple[str, Shape, list[Shape]]]) -> None:
    folders = (root, pipeline, data)
    run_cases(folders, [(kind, source, []) for kind, source, _ in runs])
    moved: dict[tuple[str, Shape], list[str]] = {}
    for kind, source, targets in runs:
        for target in targets:
            if target != source:
                moved.setdefault((kind, target), []).append(name(source))
    run_cases(folders, [(kind, target, sources) for (kind, target), sources in moved.items()])
    for kind, source, targets in runs:
        folder = root / kind / name(source)
        stayed = json.loads((folder / "after.json").read_text())
        again = json.loads((folder / f"on-{name(source)}.json").read_text())
        assert again == stayed, (kind, source, "the same shape goes on bit for bit, losses and all it holds")
        for target in targets:
            losses = json.loads((folder / f"on-{name(target)}.json").read_text())["losses"]
            worst = max(abs(a - b) / b for a, b in zip(losses, stayed["losses"], strict=True))
            print(kind, source, target, worst)
            assert worst <= TOLERANCE[kind], (kind, source, target, worst)


def test_a_run_goes_on_where_it_was_and_elsewhere(tmp_path, pipeline_folder, image_folder):
    check_all(tmp_path, pipeline_folder, json.dumps(square_data(image_folder)), FEW)
    run = RunDir(tmp_path / "adafactor" / name(FEW[1][1]))
    [checkpoint] = checkpoints.list_checkpoints(run)
    manifest = checkpoint.read_manifest()
    assert manifest.kinds == ("weights", "row_var", "col_var", "variance", "ema")
    assert manifest.layouts.keys() == {"row_var", "col_var", "variance"}
    assert checkpoint.verify() == []
    check_damage(run, tmp_path / "damaged")
    eight_bits = checkpoints.list_checkpoints(RunDir(tmp_path / "adamw_8bit" / name(FEW[0][1])))[-1].read_manifest()
    assert (eight_bits.kinds, eight_bits.layouts) == (("weights", "exp_avg", "exp_avg_sq", "ema"), {})


def check_damage(run: RunDir, copy: Path) -> None:
    """One bit of a state is another."""
    damaged = RunDir(shutil.copytree(run.path, copy / run.path.name))
    [checkpoint] = checkpoints.list_checkpoints(damaged)
    path = checkpoint.path / "fragments-00000.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert checkpoint.verify() == [f"{path}: does not match its digest"]


@pytest.mark.faults
def test_every_optimizer_from_many_shapes_to_many_others(tmp_path, pipeline_folder, image_folder):
    check_all(tmp_path, pipeline_folder, json.dumps(square_data(image_folder)), ALL)
