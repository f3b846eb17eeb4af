"""From any shape to any other: the same bits right after the load, the same samples, the same losses."""

import json
from pathlib import Path

import pytest

from tests.ranks import run_ranks

PROGRAM = Path(__file__).with_name("elastic.py")
Shape = tuple[int, int, str]  # ranks, ZeRO stage, precision
ALL: list[Shape] = [(n, z, "fp32") for n in (1, 2, 3, 4) for z in (0, 1, 2, 3)]
ALL += [(n, z, "bf16") for n in (1, 2, 3, 4) for z in (1, 2, 3)]
FEW_SOURCES: list[Shape] = [(1, 0, "fp32"), (2, 2, "fp32"), (2, 3, "bf16")]
FEW_TARGETS: list[Shape] = [(2, 3, "fp32"), (3, 1, "fp32"), (3, 2, "bf16"), (1, 2, "fp32")]
TOLERANCE = {"fp32": 5e-6, "bf16": 1e-2}


def name(shape: Shape) -> str:
    ranks, zero, precision = shape
    return f"{precision}-zero{zero}-ranks{ranks}"


def load_all(root: Path, pipeline: Path, images: Path, sources: list[Shape], targets: list[Shape], more: int) -> None:
    """Make every source, then start each target once and load every source of its precision on it.

    ZeRO 3 comes last in a process: DeepSpeed then replaces torch's linear for all that follows, which rounds otherwise.
    """
    for ranks in sorted({ranks for ranks, _, _ in sources}):
        cases = [[zero, precision] for n, zero, precision in sorted(sources, key=lambda s: s[1]) if n == ranks]
        run_ranks(ranks, PROGRAM, "make", root, pipeline, images, json.dumps(cases), MORE=more)
    for ranks in sorted({ranks for ranks, _, _ in targets}):
        cases = [
            [zero, precision, [name(source) for source in sources if source[2] == precision]]
            for n, zero, precision in sorted(targets, key=lambda target: target[1])
            if n == ranks
        ]
        run_ranks(ranks, PROGRAM, "load", root, pipeline, images, json.dumps(cases), MORE=more)
    for source in sources:
        for target in targets:
            if source[2] == target[2]:
                check(root, source, target)


def check(root: Path, source: Shape, target: Shape) -> None:
    stayed = json.loads((root / name(source) / "after.json").read_text())
    moved = json.loads((root / name(source) / f"on-{name(target)}.json").read_text())
    if moved["cut"] == stayed["cut"]:
        assert moved["first"].keys() == stayed["first"].keys()
    for positions in stayed["first"].keys() & moved["first"].keys():
        assert moved["first"][positions] == stayed["first"][positions], (source, target, positions)
    worst = max(abs(a - b) / b for a, b in zip(moved["losses"], stayed["losses"], strict=True))
    assert worst <= TOLERANCE[source[2]], (source, target, worst)
    if source == target:
        assert moved == stayed, "the same shape goes on bit for bit, losses and all it holds"


def test_some_shapes_to_some_others(tmp_path, pipeline_folder, image_folder):
    load_all(tmp_path, pipeline_folder, image_folder, FEW_SOURCES, FEW_TARGETS + FEW_SOURCES[1:], more=4)


@pytest.mark.faults
def test_every_shape_to_every_other(tmp_path, pipeline_folder, image_folder):
    load_all(tmp_path, pipeline_folder, image_folder, ALL, ALL, more=10)
