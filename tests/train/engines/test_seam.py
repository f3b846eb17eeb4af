"""What an engine is made of stays behind `train.engines`: another engine is one file and one line."""

import ast
from pathlib import Path

import pytest
import torch

from configs.errors import LockstepError
from configs.optimizers import OPTIMIZERS
from configs.schema import RunConfig
from store.run import gpus
from train import attempt as attempt_module
from train import process_group
from train.engines import ENGINES, cpu_extension, import_engine
from train.engines.optimizers import FACTORIES, count_updates, ensure_state, make_optimizer, set_update_count

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
    assert OPTIMIZERS.keys() == FACTORIES.keys()
    assert {engine for row in OPTIMIZERS.values() for engine in row.engines} == ENGINES.keys()


@pytest.mark.parametrize("name", FACTORIES)
def test_a_row_names_the_states_that_torch_makes_and_their_size(name: str) -> None:
    config = RunConfig.model_validate({"name": "a", "model": "m", "data": {"images": "i"}, "batch": 1})
    trained, fresh = (torch.nn.Parameter(torch.ones(3, 4)) for _ in range(2))
    optimizer = make_optimizer([trained, fresh], config)
    trained.grad = torch.ones(3, 4)
    optimizer.step()
    keys = OPTIMIZERS[name].states
    states = {key: value for key, value in optimizer.state[trained].items() if key != "step"}
    assert tuple(states) == keys
    assert sum(value.nbytes for value in states.values()) == OPTIMIZERS[name].bytes_per_parameter * 12

    ensure_state(optimizer, fresh, keys)
    made = optimizer.state[fresh]
    assert {key: (value.shape, value.dtype) for key, value in made.items()} == {
        key: (value.shape, value.dtype) for key, value in optimizer.state[trained].items()
    }, "what a load fills is what torch would have made"
    assert (count_updates(optimizer, trained), count_updates(optimizer, fresh)) == (1, 0)
    set_update_count(optimizer, fresh, 7)
    ensure_state(optimizer, fresh, keys)
    assert count_updates(optimizer, fresh) == 7, "what is there is left alone"


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
