"""What was compiled in one attempt is found by the next, on a node that has nothing of it."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch._dynamo.utils import counters

from configs.errors import UserError
from store.run.run_dir import RunDir
from tests.shell import as_colleague, two_users
from train.reporting.compile_cache import CompileCache

CPU = torch.device("cpu")


def open_cache(run: Path, rank: int = 0) -> CompileCache:
    world = SimpleNamespace(device=CPU, rank=rank)
    return CompileCache(SimpleNamespace(world=world, run=RunDir(run)), first_step=7)


@pytest.fixture
def other_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Forget all that is compiled, here and on the disk of the node."""
    nodes = iter(range(9))

    def forget() -> None:
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / f"node-{next(nodes)}"))
        torch._dynamo.reset()
        torch.compiler._cache.CacheArtifactManager.clear()
        counters.clear()

    return forget


def compile_something() -> tuple[int, int]:
    """Graphs that were found, and that had to be compiled."""
    torch.compile(lambda x: x.sin() + 1, backend="inductor", dynamic=False)(torch.ones(8))
    return counters["inductor"]["fxgraph_cache_hit"], counters["inductor"]["fxgraph_cache_miss"]


def test_the_next_attempt_compiles_nothing_again(
    tmp_path: Path, other_node, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    other_node()
    cache = open_cache(run)
    assert [step for step in range(12) if cache.due(step)] == [7], "right after the attempt's first step"
    assert compile_something() == (0, 1)
    cache.report(7, None)
    [kept] = (run / "compile").iterdir()
    whole = kept.read_bytes()

    other_node()
    cache = open_cache(run)
    assert compile_something() == (1, 0)
    kept.chmod(0o400)
    written = kept.stat().st_mtime_ns
    cache.report(7, None)
    assert kept.stat().st_mtime_ns == written, "nothing was new"
    assert capsys.readouterr().out == ""

    kept.chmod(0o600)
    for damaged in (whole[: len(whole) // 2], whole[:-1] + bytes([whole[-1] ^ 1]), b""):
        kept.write_bytes(damaged)
        other_node()
        cache = open_cache(run)
        assert "is damaged; this attempt compiles again" in capsys.readouterr().out
        assert cache.known == set()
    assert compile_something() == (0, 1)
    cache.report(7, None)
    other_node()
    assert open_cache(run).known


def test_ranks_that_do_not_write_read(tmp_path: Path, other_node) -> None:
    other_node()
    compile_something()
    open_cache(tmp_path, rank=3).report(7, None)
    assert list((tmp_path / "compile").iterdir()) == []
    open_cache(tmp_path).report(7, None)
    assert open_cache(tmp_path, rank=3).known


@two_users
def test_a_folder_of_another_users_is_refused(shared: Path) -> None:
    """It holds code."""
    assert as_colleague("mkdir", shared / "compile").returncode == 0
    with pytest.raises(UserError, match=r"compile: is another user's, .*; remove it, or write compile: false"):
        open_cache(shared)
