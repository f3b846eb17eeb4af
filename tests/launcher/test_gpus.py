"""`--local` on a machine with GPUs, of which there may be fewer than the config's cluster has per node."""

import os
from pathlib import Path

import pytest

from configs.schema import RunConfig
from launcher.backend import LocalBackend
from launcher.local import attempt
from launcher.plan.plan import make_plan
from launcher.plan.request import PlanRequest
from store.run import gpus
from store.run.run_dir import RunDir
from tests.tiny import make_images


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What NVIDIA's driver lists of this machine's GPUs: three."""
    folder = tmp_path / "driver"
    for number in range(3):
        (folder / f"0000:0{number}:00.0").mkdir(parents=True)
    monkeypatch.setattr(gpus, "_DRIVER", folder)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return folder


@pytest.mark.parametrize(
    ("environment", "visible"),
    [
        ({}, 3),
        ({"CUDA_VISIBLE_DEVICES": "1"}, 1),
        ({"CUDA_VISIBLE_DEVICES": "0,2"}, 2),
        ({"CUDA_VISIBLE_DEVICES": "0,1,2,3,4"}, 3),
        ({"CUDA_VISIBLE_DEVICES": ""}, 0),
        ({gpus.GPUS_VARIABLE: "0"}, 0),
    ],
)
def test_gpus_that_are_visible_are_counted(driver: Path, environment: dict[str, str], visible: int) -> None:
    assert gpus.count_visible_gpus(environment) == visible


@pytest.mark.parametrize(
    ("per_node", "listed", "ranks"),
    [
        (2, None, 2),
        (4, None, 2),  # three of four would not share the batch equally
        (3, None, 3),
        (8, "0", 1),
        (5, None, 1),
        (8, "", 8),  # on CPUs
    ],
)
@pytest.mark.usefixtures("driver")
def test_a_local_run_takes_no_more_ranks_than_there_are_gpus(
    monkeypatch: pytest.MonkeyPatch,
    model: Path,
    tmp_path: Path,
    per_node: int,
    listed: str | None,
    ranks: int,
) -> None:
    if listed is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", listed)
    config = RunConfig(
        name="a",
        model=str(model),
        data={"images": str(make_images(tmp_path / "images", 4, 32)), "resolution": 32},
        batch=720,
        micro_batch=3,
        precision="fp32",
        zero=0,
        runs=str(tmp_path / "runs"),
        cluster={"nodes": 2, "gpus_per_node": per_node},
    )
    backend, run = LocalBackend(), RunDir.for_config(config)
    batch_plan = backend.plan_batch(run, config)
    assert (batch_plan.shape.nodes, batch_plan.shape.gpus_per_node, batch_plan.batch) == (1, ranks, 720)
    assert backend.find_hardware(config).cpus_per_rank == max(1, len(os.sched_getaffinity(0)) // ranks)
    assert LocalBackend(4).plan_batch(run, config).shape.gpus_per_node == 4, "somebody wants so many"

    plan = make_plan(config, PlanRequest("a.yaml"), backend)
    assert plan.batch_plan == batch_plan
    assert plan.next_command == "lockstep submit a.yaml --local"


@pytest.mark.parametrize(
    ("version", "options"),
    [("2.9.1", []), ("2.11.0+cu130", []), ("2.12.0", ["--shutdown-timeout=3"]), ("3.0.0a0", ["--shutdown-timeout=3"])],
)
def test_torchrun_gets_no_option_that_it_does_not_know(version: str, options: list[str]) -> None:
    assert attempt._limit_shutdown(version) == options
