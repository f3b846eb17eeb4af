"""The DeepSpeed JSON of one run on one shape: numbers only, no `auto`, the three batch fields always consistent."""

from collections.abc import Mapping
from typing import Any

from configs.schema import RunConfig
from configs.solve.batch import BatchPlan

# Parameters that ZeRO-3 keeps whole at one time. DeepSpeed's own 1e9 would keep a whole Stable Diffusion UNet, which
# is what the user of ZeRO-3 wants to avoid.
ZERO3_LIVE_PARAMETERS = 100_000_000


def render_deepspeed(config: RunConfig, plan: BatchPlan) -> dict[str, Any]:
    """What `deepspeed.initialize(config=…)` gets. The optimizer and the learning rate are ours, so they are not in it.

    Gradients are summed and reduced in fp32 whatever the precision: ranks and accumulation steps then commute up to
    fp32 rounding. DeepSpeed sees the sum, of which the engine makes the mean (see `gradient_divisor`), so the norm at
    which it clips is the sum's.
    """
    rendered: dict[str, Any] = {
        "train_batch_size": plan.batch,
        "train_micro_batch_size_per_gpu": plan.micro_batch,
        "gradient_accumulation_steps": plan.accumulation,
        "gradient_allreduce_op": "mean" if config.zero == 3 else "sum",
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": _zero(config),
        "steps_per_print": 2**31,
        "wall_clock_breakdown": False,
        "timers": {"throughput": {"enabled": False}},  # it waits for the device twice per micro-batch
    }
    rendered["gradient_clipping"] = config.grad_clip * gradient_divisor(rendered)
    if config.precision == "bf16":
        rendered["bf16"] = {"enabled": True, "check_grad_overflow": True}  # DeepSpeed has moved that default before
    if config.precision == "fp16":
        rendered["fp16"] = {"enabled": True, "loss_scale": 0, "initial_scale_power": 16, "hysteresis": 2}
    if config.precision != "fp32":
        rendered["data_types"] = {"grad_accum_dtype": "fp32"}
        rendered["communication_data_type"] = "fp32"
    return rendered


def gradient_divisor(rendered: Mapping[str, Any]) -> int:
    """How many micro-batches' gradients DeepSpeed's reduced gradient is the sum of.

    Neither the loss nor a 16-bit gradient may be divided by it: 1/3 in bf16 is off by 4e-3. ZeRO 3 knows no sum and
    takes the mean over the ranks itself, in fp32, so there only gradient accumulation steps add up.
    """
    accumulation = int(rendered["gradient_accumulation_steps"])
    if rendered["gradient_allreduce_op"] == "mean":
        return accumulation
    ranks = rendered["train_batch_size"] // (rendered["train_micro_batch_size_per_gpu"] * accumulation)
    return accumulation * int(ranks)


def _zero(config: RunConfig) -> dict[str, Any]:
    assert config.zero != "auto", "it is settled before"
    zero: dict[str, Any] = {"stage": config.zero}
    if config.zero:
        zero |= {
            "contiguous_gradients": True,
            "overlap_comm": False,
            "reduce_bucket_size": 50_000_000,
            "allgather_bucket_size": 200_000_000,
        }
    if config.zero == 3:
        zero |= {
            "stage3_prefetch_bucket_size": 50_000_000,
            "stage3_param_persistence_threshold": 100_000,
            "stage3_max_live_parameters": ZERO3_LIVE_PARAMETERS,
            "stage3_max_reuse_distance": ZERO3_LIVE_PARAMETERS,
            "sub_group_size": 1_000_000_000,
        }
    if config.offload:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    return zero
