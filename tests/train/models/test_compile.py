"""Compiled blocks learn what uncompiled ones do, are compiled once, and are whole in every engine that may compile."""

import json
from pathlib import Path

import pytest
import torch

from configs.errors import UserError
from configs.schema import RunConfig
from configs.solve.buckets import list_crop_sizes
from tests.odd_images import make_bucket_data
from tests.ranks import run_ranks
from tests.runs import new_run, next_attempt, read_losses
from train.models import compile
from train.models.compile import compile_blocks, should_compile

PROGRAM, ATTEMPT = (Path(__file__).with_name(f"{name}.py") for name in ("train_compiled", "compiled_attempt"))
PICTURES = {"every_steps": 2, "prompts": ["a red circle"], "timesteps": 2}
CPU, GPU = torch.device("cpu"), torch.device("cuda")
CASES = [
    {"engine": "deepspeed", "zero": 1, "precision": "bf16", "gradient_checkpointing": True},
    {"engine": "fsdp2", "reshard": True},
]
MORE = [
    {"engine": "deepspeed", "zero": 2},
    {"engine": "deepspeed", "zero": 0},
    {"engine": "fsdp2", "reshard": True, "gradient_checkpointing": True},
    {"engine": "fsdp2", "reshard": False, "precision": "bf16"},
    {"engine": "deepspeed", "zero": 2, "lora": {"targets": "all-linear"}},
    {"engine": "fsdp2", "reshard": True, "precision": "bf16", "lora": {"rank": 4}},
]


def configure(**changes: object) -> RunConfig:
    return RunConfig(name="a", model="m", data={"images": "-"}, **changes)


@pytest.mark.parametrize("cases", [CASES, pytest.param(MORE, marks=pytest.mark.faults)], ids=["fast", "more"])
def test_what_is_compiled_learns_the_same_in_every_engine(
    tmp_path: Path, pipeline_folder: Path, image_folder: Path, cases: list[dict[str, object]]
) -> None:
    """Two steps of two micro-batches per rank; the last loss has an update behind it."""
    run_ranks(2, PROGRAM, tmp_path, pipeline_folder, image_folder, json.dumps(cases))
    for number, case in enumerate(cases):
        eager, compiled = (json.loads((tmp_path / f"{number}-{how}.json").read_text()) for how in ("eager", "compiled"))
        near = 1e-5 if case.get("precision", "fp32") == "fp32" else 1e-2
        assert compiled["losses"] == pytest.approx(eager["losses"], rel=near), case
        assert eager["graphs"] == [0, 0]
        assert 0 < compiled["graphs"][0] == compiled["graphs"][1], "compiled in the first step, and never again"
        assert compiled["breaks"] == 0, "each block is one graph"


@pytest.mark.faults
def test_stable_diffusion_xl_is_compiled_as_well(tmp_path: Path, pipeline_xl_folder: Path, image_folder: Path) -> None:
    test_what_is_compiled_learns_the_same_in_every_engine(tmp_path, pipeline_xl_folder, image_folder, CASES)


@pytest.mark.faults
def test_every_size_of_the_buckets_is_compiled(tmp_path: Path, pipeline_folder: Path, image_folder: Path) -> None:
    """Micro-batches of several sizes in a run learn what they do uncompiled."""
    data = make_bucket_data(tmp_path)
    data["buckets"] |= {"grain": 2}
    run_ranks(2, PROGRAM, tmp_path, pipeline_folder, image_folder, json.dumps([{"engine": "fsdp2", "data": data}]))
    eager, compiled = (json.loads((tmp_path / f"0-{how}.json").read_text()) for how in ("eager", "compiled"))
    assert compiled["losses"] == pytest.approx(eager["losses"], rel=1e-5)
    assert (eager["graphs"], compiled["breaks"]) == ([0, 0], 0)
    assert len(set(eager["sizes"])) > 1
    seen = [len(set(compiled["sizes"][: 2 * step])) for step in (1, 2)]  # of two micro-batches in each step
    assert 0 < compiled["graphs"][0] * seen[1] == compiled["graphs"][1] * seen[0], "as many graphs for each size"


def test_no_size_of_the_buckets_is_left_uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch stops compiling a function at its limits, in silence, and counts what it compiled for each size."""
    monkeypatch.setattr(compile, "_find_problem", lambda _: None)
    few, many = ({"images": "-"}, {"images": "-", "buckets": {"side": 1024, "max_ratio": 4}})
    limits = []
    for data in (few, many):
        config = RunConfig(name="a", model="m", data=data, compile=True)
        with torch._dynamo.config.patch(recompile_limit=8, accumulated_recompile_limit=256):
            compile_blocks(torch.nn.Linear(2, 2), config, CPU)
            limits.append((torch._dynamo.config.recompile_limit, torch._dynamo.config.accumulated_recompile_limit))
    sizes = len(list_crop_sizes(config.data))
    assert sizes > 13
    assert limits[1] == tuple(sizes * limit for limit in limits[0])


@pytest.mark.faults
def test_a_requeued_attempt_on_another_node_compiles_nothing_again(
    tmp_path: Path, pipeline_folder: Path, image_folder: Path
) -> None:
    """With torch's own compiler, and sample pictures, which are drawn uncompiled."""
    run = new_run(tmp_path / "run", pipeline_folder, image_folder, compile=True, zero=0, pictures=PICTURES)
    found = []
    for number, steps in enumerate((2, 4)):
        attempt = next_attempt(run, 1, steps=steps)
        node = tmp_path / f"node-{number}"
        lines = run_ranks(1, ATTEMPT, run.path, attempt.number, TORCHINDUCTOR_CACHE_DIR=node)
        found.append(json.loads(next(line for line in lines.splitlines() if line.startswith('{"hit"'))))
    first, second = found
    trial = 1  # whether anything compiles here, found out before what is kept is read
    assert first["hit"] == 0 < first["miss"] - trial
    assert second == {"hit": first["miss"] - trial, "miss": trial}
    uncompiled = new_run(tmp_path / "eager", pipeline_folder, image_folder, zero=0)
    for steps in (2, 4):
        run_ranks(1, ATTEMPT, uncompiled.path, next_attempt(uncompiled, 1, steps=steps).number)
    assert read_losses(run) == pytest.approx(read_losses(uncompiled), rel=1e-5)


@pytest.mark.parametrize(
    ("device", "changes", "compiles"),
    [
        (CPU, {}, False),
        (GPU, {"zero": 2}, True),
        (GPU, {"zero": 2, "deterministic": True}, False),
        (GPU, {"zero": 2, "compile": False}, False),
        (CPU, {"zero": 2, "compile": True}, True),
        (GPU, {"zero": 3}, False),
        (GPU, {"engine": "fsdp2"}, True),
    ],
)
def test_by_default_a_gpu_compiles_and_determinism_does_not(
    device: torch.device, changes: dict[str, object], compiles: bool
) -> None:
    assert should_compile(configure(**changes), device) is compiles


def test_a_node_without_a_compiler_trains_uncompiled_or_says_what_it_lacks(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(compile, "should_compile", lambda *_: True)
    torch._dynamo.reset()
    denoiser = torch.nn.Linear(2, 2)
    lacks = r"does not work on .*install a C\+\+ compiler there .* or write compile: false"
    with torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)}):
        assert not compile_blocks(denoiser, configure(), CPU)
        said = capsys.readouterr().out
        with pytest.raises(UserError, match=lacks):
            compile_blocks(denoiser, configure(compile=True), CPU)
    assert "torch.compile does not work on" in said
    assert "run uncompiled" in said
