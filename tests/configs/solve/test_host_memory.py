"""What the ranks of one node hold in its own memory."""

from dataclasses import replace
from typing import Any

import pytest

from configs.known_models import SD1, PipelineSize
from configs.schema import RunConfig
from configs.solve.batch import BatchPlan, Shape
from configs.solve.device_memory import estimate_device_memory
from configs.solve.hardware import GIB, Hardware
from configs.solve.host_memory import HostMemory, estimate_host_memory
from configs.solve.memory import estimate_model_states

H100, CPUS = Hardware(gpu_memory=79.6, host_memory=500.0), Hardware(gpus=False, host_memory=64.0)
P = SD1.parameters["unet"]


def estimate(shape: Shape, hardware: Hardware = H100, size: PipelineSize = SD1, **changes: Any) -> HostMemory | None:
    settings = {"name": "host", "model": "-", "data": {"images": "-", "workers": 2}, "precision": "bf16", "zero": 1}
    config = RunConfig.model_validate(settings | changes)
    plan = BatchPlan(shape, 8, 1)
    device = estimate_device_memory(config, plan, size, hardware)
    return estimate_host_memory(config, plan, size, device, hardware)


@pytest.mark.parametrize("shape", [Shape(1, 1), Shape(1, 8), Shape(4, 8)])
@pytest.mark.parametrize("ema", [False, True])
def test_the_nodes_buffers_hold_one_checkpoint_between_them(shape: Shape, ema: bool) -> None:
    held = estimate(shape, ema=ema)
    assert held is not None
    states = 4 if ema else 3  # weights, two moments, the average; fp32
    assert held.checkpoint_buffers * shape.nodes == pytest.approx(4 * states * P, rel=1e-6)


def test_whether_a_node_has_it() -> None:
    held = estimate(Shape(1, 8))
    assert held is not None
    assert held.fits(H100) is True
    assert held.fits(Hardware(host_memory=20.0)) is False
    assert held.fits(Hardware()) is None


@pytest.mark.parametrize(("cpus", "workers"), [(1, 1), (6, 5), (64, 8), (None, 8)])
def test_workers_that_nobody_counted_follow_from_the_cpus(cpus: int | None, workers: int) -> None:
    held = estimate(Shape(1, 2), replace(H100, cpus_per_rank=cpus), data={"images": "-"})
    assert held is not None
    assert held.workers == 2 * workers * GIB // 2


def test_offload_brings_the_optimizer_here() -> None:
    held = estimate(Shape(1, 4), offload=True, zero=2)
    config = RunConfig.model_validate(
        {"name": "a", "model": "m", "data": {"images": "i"}, "precision": "bf16", "zero": 2, "offload": True}
    )
    assert held is not None
    assert held.offload == 4 * estimate_model_states(config, P, 4).cpu > 0


def test_on_cpus_all_is_here() -> None:
    held = estimate(Shape(1, 2), CPUS, precision="fp32", zero=0)
    assert held is not None
    assert held.device > 2 * 16 * P + 2 * 8 * 1.7 * GIB, "states and activations of both ranks"
    assert held.offload == 0


def test_a_model_that_is_not_known_is_not_guessed() -> None:
    assert estimate(Shape(1, 1), size=PipelineSize({}, {})) is None
