"""The rendered DeepSpeed JSON: numbers only, and the three batch fields agree."""

import json
from typing import Any

import pytest

from configs.schema import RunConfig
from configs.solve.batch import Shape, solve_batch
from configs.solve.deepspeed import render_deepspeed

ONE = Shape(1, 1)


def rendered(shape: Shape = ONE, **keys: object) -> dict[str, Any]:
    settled = {"zero": 2, "precision": "fp32"} | keys
    config = RunConfig.model_validate({"name": "a", "model": "m", "data": {"images": "i"}, **settled})
    return render_deepspeed(config, solve_batch(config, shape))


@pytest.mark.parametrize("shape", [Shape(1, 1), Shape(1, 4), Shape(2, 4)])
@pytest.mark.parametrize("zero", [1, 2, 3])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_the_batch_fields_are_numbers_and_agree(shape: Shape, zero: int, precision: str) -> None:
    found = rendered(shape, batch=64, micro_batch=4, zero=zero, precision=precision)
    assert found["train_batch_size"] == 64
    product = found["train_micro_batch_size_per_gpu"] * found["gradient_accumulation_steps"] * shape.world_size
    assert product == 64
    assert found["zero_optimization"]["stage"] == zero
    assert "auto" not in json.dumps(found)


def test_gradients_are_summed_in_fp32_whatever_the_precision() -> None:
    assert rendered(precision="bf16")["data_types"] == {"grad_accum_dtype": "fp32"}
    assert rendered(precision="bf16")["communication_data_type"] == "fp32"
    assert rendered(precision="bf16")["bf16"] == {"enabled": True, "check_grad_overflow": True}
    assert "bf16" not in rendered(precision="fp32")
    assert rendered(precision="fp16")["fp16"]["loss_scale"] == 0  # dynamic


def test_offload_and_clipping_follow_the_config() -> None:
    assert rendered(offload=True)["zero_optimization"]["offload_optimizer"]["device"] == "cpu"
    assert "offload_optimizer" not in rendered()["zero_optimization"]
    assert rendered(grad_clip=0.5)["gradient_clipping"] == 0.5


def test_deepspeed_clips_the_sum_of_all_micro_batches_at_as_many_times_the_norm() -> None:
    shared = {"batch": 48, "micro_batch": 4, "grad_clip": 0.5}
    assert rendered(Shape(1, 3), zero=2, **shared)["gradient_allreduce_op"] == "sum"
    assert rendered(Shape(1, 3), zero=2, **shared)["gradient_clipping"] == 0.5 * 12
    assert rendered(Shape(1, 3), zero=3, **shared)["gradient_allreduce_op"] == "mean"  # it has no sum
    assert rendered(Shape(1, 3), zero=3, **shared)["gradient_clipping"] == 0.5 * 4


def test_no_timer_waits_for_the_device() -> None:
    assert rendered()["timers"] == {"throughput": {"enabled": False}}
