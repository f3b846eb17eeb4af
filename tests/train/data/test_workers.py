"""A rank's processes follow from its CPUs: SLURM's word for them, or its share of the machine."""

import os

import pytest

from train.data.workers import count_workers


@pytest.mark.parametrize(
    ("cpus", "environment", "workers"),
    [
        (16, {"SLURM_CPUS_PER_TASK": "5"}, 4),
        (4, {"SLURM_CPUS_PER_TASK": "8"}, 3),
        (16, {"LOCAL_WORLD_SIZE": "4", "SLURM_CPUS_PER_TASK": "2"}, 3),
        (2, {"LOCAL_WORLD_SIZE": "6"}, 1),
        (1, {}, 1),
        (64, {}, 8),
    ],
)
def test_a_rank_has_a_worker_for_each_cpu_but_its_own(
    monkeypatch: pytest.MonkeyPatch, cpus: int, environment: dict[str, str], workers: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cpus)))
    for name in ("LOCAL_WORLD_SIZE", "SLURM_CPUS_PER_TASK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert count_workers(None) == workers


def test_what_the_user_writes_is_done() -> None:
    assert [count_workers(written) for written in (0, 1, 40)] == [0, 1, 40]
