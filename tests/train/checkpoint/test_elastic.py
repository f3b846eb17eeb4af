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
FEW_TARGETS: list[Shape] = [(2, 3, "fp32"), (3, 1, "fp32"), (3, 2, "bf16"), (2, 1, "bf16"), (1, 2, "fp32")]
TOLERANCE = {"fp32": 5e-6, "bf16": 1e-2}


def name(shape: Shape) -> str:
    ranks, zero, precision = shape
    return f"{precision}-zero{zero}-ranks{ranks}"


def make_all(root: Path, pipeline: Path, images: Path, sources: list[Shape], more: int) -> None:
    """A run of every source that saved and went on for `more` steps.

    ZeRO 3 comes last in a process: DeepSpeed then replaces torch's linear for all that follows, which rounds otherwise.
    """
    for ranks in sorted({ranks for ranks, _, _ in sources}):
        cases = [[zero, precision] for n, zero, precision in sorted(sources, key=lambda s: s[1]) if n == ranks]
        run_ranks(ranks, PROGRAM, "make", root, pipeline, images, json.dumps(cases), MORE=more)


def load_all(
    root: Path, pipeline: Path, images: Path, sources: list[Shape], targets: list[Shape], ranks: int, more: int
) -> None:
    """Start each target of `ranks` ranks once and load every source of its precision on it."""
    mine = sorted((target for target in targets if target[0] == ranks), key=lambda target: target[1])
    pairs = {target: [source for source in sources if source[2] == target[2]] for target in mine}
    cases = [[zero, precision, list(map(name, found))] for (_, zero, precision), found in pairs.items()]
    run_ranks(ranks, PROGRAM, "load", root, pipeline, images, json.dumps(cases), MORE=more)
    for target, found in pairs.items():
        for source in found:
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
    folders = (tmp_path, pipeline_folder, image_folder)
    make_all(*folders, FEW_SOURCES, more=4)
    for ranks in (1, 2, 3):
        load_all(*folders, FEW_SOURCES, FEW_TARGETS + FEW_SOURCES[1:], ranks, more=4)


@pytest.fixture(scope="module")
def every_source(tmp_path_factory, pipeline_folder, image_folder) -> tuple[Path, Path, Path]:
    folders = (tmp_path_factory.mktemp("elastic"), pipeline_folder, image_folder)
    make_all(*folders, ALL, more=10)
    return folders


@pytest.mark.faults
@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_every_shape_to_every_other(every_source, ranks):
    load_all(*every_source, ALL, ALL, ranks, more=10)
