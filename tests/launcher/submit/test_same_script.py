"""The job's script is made once: plan shows, submit tests, keeps and queues the same bytes."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from configs.solve import batch
from slurm.job import request
from store.run.run_dir import RunDir
from tests.launcher.desk import Desk

# keeps what it is given to test, from standard input, and what it is given to queue, from a file
KEEPS = (
    'case "$*" in '
    '*--test-only*) cat >{0}/tested; echo "sbatch: Job 9 to start at 2027-01-01T00:00:00" >&2;; '
    "*) cp $2 {0}/queued; echo 8;; esac"
)
SHAPES = {
    "one node": (),
    "many nodes": ("cluster.nodes=4", "cluster.gpus_per_node=2"),
    "a range": ("cluster.nodes=2-8", "cluster.gpus_per_node=1"),
    "a range whose batch follows from its smallest shape": ("cluster.nodes=2-3", "batch=null", "micro_batch=4"),
}


class Calls:
    """How often the script was rendered, and on which shapes the batch was solved."""

    def __init__(self) -> None:
        self.renderings = 0
        self.shapes: list[batch.Shape] = []


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Calls]:
    calls = Calls()
    render, solve = request._make_sbatch_string, batch._solve_on

    def count_rendering(*args: Any, **options: Any) -> str:
        calls.renderings += 1
        return render(*args, **options)

    def count_solve(config: Any, shape: batch.Shape, **options: Any) -> batch.BatchPlan:
        calls.shapes.append(shape)
        return solve(config, shape, **options)

    with monkeypatch.context() as patch:
        patch.setattr(request, "_make_sbatch_string", count_rendering)
        patch.setattr(batch, "_solve_on", count_solve)
        yield calls


@pytest.mark.parametrize("shape", SHAPES)
def test_plan_shows_the_bytes_that_are_tested_and_queued(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, shape: str
) -> None:
    words = SHAPES[shape]
    code, shown = desk.lockstep("plan", desk.file, "--sbatch", *words)
    assert code == 0, shown
    desk.does("sbatch", KEEPS.format(desk.folder))
    with counted(monkeypatch) as calls:
        code, output = desk.lockstep("submit", desk.file, *words)
    assert code == 0, output
    run = RunDir(desk.folder / "runs/mine")
    texts = [Path(desk.folder, name).read_text() for name in ("tested", "queued")]
    assert [*texts, run.sbatch_path.read_text()] == [shown] * 3
    assert calls.renderings == 1
    assert len(calls.shapes) == len(set(calls.shapes)), "no shape is solved twice"
    assert len(calls.shapes) == 1 or "range" in shape


def test_a_sweep_queues_the_script_that_it_tested(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.does("sbatch", KEEPS.format(desk.folder))
    with counted(monkeypatch) as calls:
        code, output = desk.lockstep("sweep", desk.file, "lr=1e-5,2e-5")
    assert code == 0, output
    queued = (desk.folder / "queued").read_text()
    assert (desk.folder / "tested").read_text() == queued
    assert "#SBATCH --array=0-1%2" in queued
    for name in ("mine-lr-1e-5", "mine-lr-2e-5"):
        assert RunDir(desk.folder / "runs" / name).sbatch_path.read_text() == queued
    assert calls.renderings == 1
    assert len(calls.shapes) == 2, "once for each run"
