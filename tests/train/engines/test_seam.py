"""What an engine is made of stays behind `train.engines`: another engine is one file and one line."""

import ast
from pathlib import Path
from typing import get_args

import pytest
import torch
from diffusers import UNet2DConditionModel

from configs.errors import LockstepError
from configs.known_models import SD1, SD2, SDXL
from configs.optimizers import OPTIMIZERS
from configs.schema import OptimizerConfig, RunConfig
from store.run import gpus
from train import attempt as attempt_module
from train import process_group
from train.engines import ENGINES, cpu_extension, import_engine
from train.engines.optimizers import SPECS, make_optimizer

ROOT = Path(__file__).parents[3]
TRAIN = sorted((ROOT / "train").rglob("*.py"))
OUTSIDE = [path for path in TRAIN if not path.is_relative_to(ROOT / "train/engines")]
# what the engines' own programs look into is theirs; bench runs DeepSpeed and PyTorch against us
OUTSIDE_WITH_TESTS = OUTSIDE + [
    path
    for path in [*(ROOT / "tests").rglob("*.py"), *(ROOT / "bench").rglob("*.py")]
    if not path.is_relative_to(ROOT / "tests/train/engines")
]
PRIVATE = {"train.engines.deepspeed_state", "train.engines.zero3_linear"}


def imports_of(path: Path) -> set[str]:
    """The modules that a file imports, also where it imports a module from its package."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {str(node.module)} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_only_the_engines_know_deepspeed() -> None:
    for path in OUTSIDE:
        libraries = {name.partition(".")[0] for name in imports_of(path)}
        assert "deepspeed" not in libraries, path


def test_what_the_engines_keep_for_themselves_is_used_by_nobody_else() -> None:
    for path in OUTSIDE_WITH_TESTS:
        assert not imports_of(path) & PRIVATE, path
        attributes = {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
        assert not attributes & {"_deepspeed", "basic_optimizer"}, path


def test_the_process_group_knows_no_engine_and_with_fsdp2_alone_imports_torch_distributed() -> None:
    group = ROOT / "train/process_group.py"
    assert not [name for name in imports_of(group) if name.startswith("train.engines")]
    importing = [path for path in TRAIN if any(name.startswith("torch.distributed") for name in imports_of(path))]
    assert importing == [ROOT / "train/engines/fsdp2.py", group]


def test_planning_and_training_know_the_same_optimizers() -> None:
    assert OPTIMIZERS.keys() == SPECS.keys() == set(get_args(OptimizerConfig.model_fields["name"].annotation))


@pytest.mark.parametrize("name", SPECS)
def test_a_row_and_what_is_made_for_a_load_are_what_the_library_makes_at_the_first_update(name: str) -> None:
    shapes = [(64, 96), (8, 16, 3, 3), (40, 8, 1, 1), (5000,), (7,)]
    config = RunConfig(name="a", model="m", data={"images": "i"}, batch=1, optimizer={"name": name})
    trained = [torch.nn.Parameter(torch.ones(shape)) for shape in shapes]
    optimizer, spec = make_optimizer(trained, config), SPECS[name]
    for parameter in trained:
        parameter.grad = torch.ones(parameter.shape)
    optimizer.step()
    for parameter, shape in zip(trained, shapes, strict=True):
        made = optimizer.state[parameter]
        before = spec.make_entries(optimizer, torch.nn.Parameter(torch.ones(shape)))
        assert before.keys() == made.keys()
        for key, value in before.items():
            assert type(value) is type(made[key]), key
            if isinstance(value, torch.Tensor):
                assert (value.shape, value.dtype, value.device) == (made[key].shape, made[key].dtype, made[key].device)
        assert (int(before["step"]), int(made["step"])) == (0, 1)
        for key, count in OPTIMIZERS[name].states.items():
            elements = count(shape)
            if elements:
                out = torch.empty(elements)
                spec.find_values(made, key).read(0, out)
                assert out.isfinite().all()
                assert out.any(), "an update moved them"


def test_bytes_per_parameter() -> None:
    """Of AdamW and its moments of 8 bits what torch holds; of Adafactor what Stable Diffusion's UNets come to."""
    for name in ("adamw", "adamw_8bit"):
        config = RunConfig(name="a", model="m", data={"images": "i"}, batch=1, optimizer={"name": name})
        parameter = torch.nn.Parameter(torch.zeros(1024, 256))
        entries = SPECS[name].make_entries(make_optimizer([parameter], config), parameter)
        states = [SPECS[name].find_values(entries, key) for key in OPTIMIZERS[name].states]
        held = sum(tensor.nbytes for state in states for tensor in state.tensors)
        assert held == OPTIMIZERS[name].bytes_per_parameter * parameter.numel()
    for known, most in ((SD1, 2.13), (SD2, 1.89), (SDXL, 0.39)):
        with torch.device("meta"):
            unet = UNet2DConditionModel.from_config(dict(known.configs["unet"]))
        shapes = [parameter.shape for parameter in unet.parameters()]
        elements = sum(count(shape) for count in OPTIMIZERS["adafactor"].states.values() for shape in shapes)
        per_parameter = 4 * elements / known.parameters["unet"]
        assert most - 0.01 < per_parameter <= most <= OPTIMIZERS["adafactor"].bytes_per_parameter


def test_without_decay_on_norms_and_biases_there_are_two_groups() -> None:
    parameters = [torch.nn.Parameter(torch.ones(shape)) for shape in ((4, 4), (4,), (2, 2, 3, 3), ())]
    for decay, wanted in (("all", [0.5] * 4), ("matrices", [0.5, 0.0, 0.5, 0.0])):
        settings = {"decay": decay, "weight_decay": 0.5}
        config = RunConfig(name="a", model="m", data={"images": "i"}, batch=1, optimizer=settings)
        optimizer = make_optimizer(parameters, config)
        decays = {p: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
        assert [decays[parameter] for parameter in parameters] == wanted
    assert len(make_optimizer(parameters[:1], config).param_groups) == 1, "of LoRA, which has matrices alone"


@pytest.mark.parametrize("name", ENGINES)
def test_every_engine_can_be_imported_and_prepared(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    built = []
    monkeypatch.setattr(cpu_extension, "build_extension", lambda: built.append("extension"))
    engine = import_engine(name)
    engine.prepare(torch.device("cuda", 0))
    assert built == [], "GPUs need none"
    engine.prepare(torch.device("cpu"))
    assert built == (["extension"] if name == "deepspeed" else []), "torch needs none either"


def test_what_takes_long_is_done_before_the_ranks_join(tmp_path, monkeypatch, pipeline_folder, image_folder) -> None:
    """A rank that compiles while the others wait in the rendezvous would let them time out."""
    from tests.runs import new_run, next_attempt
    from train.stop_signal import StopSignal

    happened = []

    def join(*_: object) -> None:
        happened.append("join")
        raise LockstepError("far enough")

    monkeypatch.setenv(gpus.GPUS_VARIABLE, "0")
    monkeypatch.setattr(cpu_extension, "build_extension", lambda: happened.append("build"))
    monkeypatch.setattr(process_group, "init_process_group", join)
    run = new_run(tmp_path / "run", pipeline_folder, image_folder, zero=2)
    with pytest.raises(LockstepError, match="far enough"):
        attempt_module.run_attempt(run, next_attempt(run, 1), StopSignal.__new__(StopSignal))
    assert happened == ["build", "join"]
