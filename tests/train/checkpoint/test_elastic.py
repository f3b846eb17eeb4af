"""From any shape and engine to any other: the same bits right after the load, the same samples, the same losses."""

import json
from pathlib import Path

import pytest

from tests.engines import SETTINGS
from tests.odd_images import make_bucket_data
from tests.ranks import run_ranks
from tests.runs import square_data
from tests.train.engines.test_objective_shapes import OBJECTIVES

PROGRAM = Path(__file__).with_name("elastic.py")
Shape = tuple[int, str, str]  # ranks, engine, precision
ALL: list[Shape] = [
    (ranks, engine, precision)
    for ranks in (1, 2, 3, 4)
    for engine in SETTINGS
    for precision in (("fp32",) if engine == "zero0" else ("fp32", "bf16"))
]
FEW_SOURCES: list[Shape] = [(1, "zero0", "fp32"), (2, "zero2", "fp32"), (3, "keep", "fp32")]
FEW_SOURCES += [(2, "zero3", "bf16"), (2, "reshard", "bf16")]
FEW_TARGETS: list[Shape] = [(2, "reshard", "fp32"), (2, "zero3", "fp32"), (3, "zero0", "fp32"), (3, "keep", "fp32")]
FEW_TARGETS += [(3, "zero1", "bf16"), (2, "reshard", "bf16")]
ADAPTED = ["to_q", "to_k", "to_v", "to_out.0", "conv1", "proj_in", "time_emb_proj"]
ADAPTED_SOURCES: list[Shape] = [(1, "zero2", "fp32"), (2, "reshard", "bf16"), (2, "zero3", "fp32")]
ADAPTED_PAIRS: dict[Shape, list[Shape]] = {  # on the same shape, and on another
    (2, "reshard", "bf16"): [(2, "reshard", "bf16")],
    (2, "zero3", "fp32"): [(1, "zero2", "fp32")],
}
TOLERANCE = {"fp32": 5e-6, "bf16": 1e-2}


def name(shape: Shape) -> str:
    ranks, engine, precision = shape
    return f"{precision}-{engine}-ranks{ranks}"


def is_zero3(shape: Shape) -> bool:
    """It comes last in a process: DeepSpeed replaces torch's linear for all that follows, which rounds otherwise."""
    return shape[1] == "zero3"


def make_all(root: Path, pipeline: Path, changes: str, sources: list[Shape], more: int) -> None:
    """A run of every source that saved and went on for `more` steps."""
    for ranks in sorted({ranks for ranks, _, _ in sources}):
        cases = [shape[1:] for shape in sorted(sources, key=is_zero3) if shape[0] == ranks]
        run_ranks(ranks, PROGRAM, "make", root, pipeline, changes, json.dumps(cases), MORE=more)


def load_all(root: Path, pipeline: Path, changes: str, pairs: dict[Shape, list[Shape]], ranks: int, more: int) -> None:
    """Start each target of `ranks` ranks once and load its sources on it. `pairs`: target → sources."""
    mine = sorted((target for target in pairs if target[0] == ranks), key=is_zero3)
    cases = [[*target[1:], list(map(name, pairs[target]))] for target in mine]
    run_ranks(ranks, PROGRAM, "load", root, pipeline, changes, json.dumps(cases), MORE=more)
    for target in mine:
        for source in pairs[target]:
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


def squares(images: Path) -> str:
    """The data of the config, as JSON."""
    return json.dumps({"data": square_data(images)})


def test_some_shapes_to_some_others(tmp_path, pipeline_folder, image_folder):
    folders = (tmp_path, pipeline_folder, squares(image_folder))
    make_all(*folders, FEW_SOURCES, more=4)
    pairs = {target: [source for source in FEW_SOURCES if source[2] == target[2]] for target in FEW_TARGETS}
    for ranks in (2, 3):
        load_all(*folders, pairs, ranks, more=4)


def test_a_bucketed_epoch_goes_on_elsewhere(tmp_path, pipeline_folder):
    """Saved after 36 of an epoch's 29.5 samples, that is in the second one."""
    data = json.dumps({"data": make_bucket_data(tmp_path)})
    source: Shape = (2, "zero2", "fp32")
    make_all(tmp_path, pipeline_folder, data, [source], more=4)
    for target in ((1, "zero1", "fp32"), (3, "reshard", "fp32")):
        load_all(tmp_path, pipeline_folder, data, {target: [source]}, target[0], more=4)


def adapters(images: Path) -> str:
    """Changes to the config: low-rank adapters on every kind of layer that may have one."""
    return json.dumps({"data": square_data(images), "lora": {"rank": 4, "alpha": 6, "targets": ADAPTED}, "lr": 1e-2})


def check_alike(root: Path, sources: list[Shape]) -> None:
    """The losses of fp32 do not depend on the shape."""
    losses = [json.loads((root / name(source) / "after.json").read_text())["losses"] for source in sources]
    for other in losses[1:]:
        assert max(abs(a - b) / b for a, b in zip(other, losses[0], strict=True)) <= TOLERANCE["fp32"]


def test_adapters_go_on_elsewhere(tmp_path, pipeline_folder, image_folder):
    """Each source also looks whether the weights below the adapters are as they were."""
    folders = (tmp_path, pipeline_folder, adapters(image_folder))
    make_all(*folders, ADAPTED_SOURCES, more=3)
    check_alike(tmp_path, [source for source in ADAPTED_SOURCES if source[2] == "fp32"])
    load_all(*folders, ADAPTED_PAIRS, 2, more=3)


def test_stable_diffusion_xl_goes_on_on_its_own_shape_and_elsewhere(tmp_path, pipeline_xl_folder, image_folder):
    """With sizes that are dropped now and then."""
    data = json.dumps({"data": square_data(image_folder) | {"size_dropout": 0.3}})
    source: Shape = (2, "zero2", "fp32")
    make_all(tmp_path, pipeline_xl_folder, data, [source], more=3)
    pairs = {target: [source] for target in (source, (2, "zero3", "fp32"), (1, "reshard", "fp32"))}
    for ranks in (1, 2):
        load_all(tmp_path, pipeline_xl_folder, data, pairs, ranks, more=3)


@pytest.mark.faults
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_goes_on_elsewhere(tmp_path, pipeline_folder, image_folder, objective):
    """On the same shape bit for bit: nothing of it is a state that would have to be saved."""
    changes = json.dumps({"data": square_data(image_folder)} | OBJECTIVES[objective])
    source: Shape = (2, "zero2", "fp32")
    make_all(tmp_path, pipeline_folder, changes, [source], more=4)
    for target in (source, (1, "zero1", "fp32"), (3, "reshard", "fp32"), (2, "zero3", "fp32")):
        load_all(tmp_path, pipeline_folder, changes, {target: [source]}, target[0], more=4)


def is_tried(source: Shape, target: Shape) -> bool:
    """Every engine on every world to every other, in one precision: where both know two, they take turns."""
    if source[2] != target[2] or source == target or "zero0" in (source[1], target[1]):
        return source[2] == target[2]
    engines = list(SETTINGS)
    turn = sum(ranks + engines.index(engine) for ranks, engine, _ in (source, target)) % 2
    return source[2] == ("fp32", "bf16")[turn]


@pytest.fixture(scope="module")
def every_source(tmp_path_factory, pipeline_folder, image_folder) -> tuple[Path, Path, str]:
    folders = (tmp_path_factory.mktemp("elastic"), pipeline_folder, squares(image_folder))
    make_all(*folders, ALL, more=10)
    return folders


@pytest.mark.faults
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_adapters_of_every_shape_to_every_other(tmp_path, pipeline_2_folder, image_folder, ranks):
    folders = (tmp_path, pipeline_2_folder, adapters(image_folder))
    sources = [shape for shape in ALL if shape[0] <= 3]
    make_all(*folders, sources, more=10)
    check_alike(tmp_path, [source for source in sources if source[2] == "fp32"])
    pairs = {target: [source for source in sources if is_tried(source, target)] for target in sources}
    load_all(*folders, pairs, ranks, more=10)


@pytest.mark.faults
def test_stable_diffusion_xl_from_some_shapes_to_some_others(tmp_path, pipeline_xl_folder, image_folder):
    folders = (tmp_path, pipeline_xl_folder, squares(image_folder))
    make_all(*folders, FEW_SOURCES, more=4)
    pairs = {target: [source for source in FEW_SOURCES if source[2] == target[2]] for target in FEW_TARGETS}
    for ranks in (2, 3):
        load_all(*folders, pairs, ranks, more=4)


@pytest.mark.faults
@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_every_shape_to_every_other(every_source, ranks):
    pairs = {target: [source for source in ALL if is_tried(source, target)] for target in ALL}
    load_all(*every_source, pairs, ranks, more=10)
