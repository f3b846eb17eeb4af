"""What `auto` becomes on which hardware, and that what is chosen leaves room on the GPU."""

from typing import Any

import pytest

from configs.errors import UserError
from configs.known_models import SD1, SDXL, PipelineSize
from configs.schema import RunConfig
from configs.solve.batch import BatchPlan, Shape, solve_batch
from configs.solve.device_memory import VAE_TENSORS, estimate_device_memory
from configs.solve.hardware import GIB, MARGIN, Hardware, parse_memory
from configs.solve.settle import UNKNOWN_ZERO, Settled, check_precision, settle_memory, settle_precision

H100 = Hardware(gpu_memory=79.6, compute_capability="9.0")
RTX_3090 = Hardware(gpu_memory=24.0, compute_capability="8.6")
V100 = Hardware(gpu_memory=32.0, compute_capability="7.0")
UNKNOWN = Hardware()
CPUS = Hardware(gpus=False, host_memory=24.0)
NOTHING = PipelineSize({}, {})
ADAFACTOR, EIGHT_BITS = {"name": "adafactor"}, {"name": "adamw_8bit"}


def config(**changes: Any) -> RunConfig:
    data = {"images": "-", "resolution": changes.pop("resolution", 512), "cache": "off"}
    return RunConfig.model_validate({"name": "settle", "model": "me/mine", "data": data, "batch": 256, **changes})


def settle(
    shape: tuple[int, int], hardware: Hardware = H100, size: PipelineSize = SD1, **changes: Any
) -> tuple[int | str, int, int]:
    """Stage, micro-batch and accumulation."""
    settled = settle_whole(shape, hardware, size, **changes)
    return settled.config.zero, settled.batch_plan.micro_batch, settled.batch_plan.accumulation


def settle_whole(shape: tuple[int, int], hardware: Hardware, size: PipelineSize, **changes: Any) -> Settled:
    written = config(**({"precision": "bf16"} | changes))
    return settle_memory(written, solve_batch(written, Shape(*shape)), hardware, size)


def test_memory_is_planned_for_the_size_that_takes_most() -> None:
    """Sixteen squares of 512 pixels are encoded in two slices, sixteen images of 576 × 448 in one."""
    data = {"images": "-", "buckets": {}, "cache": "off"}
    written = config(precision="bf16", batch=16, zero=2, gradient_checkpointing=True, data=data)
    planned = estimate_device_memory(written, BatchPlan(Shape(1, 1), 16, 1), SD1, H100)
    assert planned.activations == 16 * 576 * 448 * 2 * VAE_TENSORS * 128


def test_what_is_cached_takes_no_memory_but_where_pictures_are_drawn() -> None:
    pictures = {"prompts": ["a fox"]}
    vae, text_encoder = 2 * SD1.parameters["vae"], 2 * SD1.parameters["text_encoder"]
    for cache, changes, frozen in (
        ("off", {}, vae + text_encoder),
        ("latents", {}, text_encoder),
        ("all", {}, 0),
        ("all", {"pictures": pictures}, vae + text_encoder),
    ):
        written = config(precision="bf16", zero=2, data={"images": "-", "cache": cache}, **changes)
        planned = estimate_device_memory(written, BatchPlan(Shape(1, 1), 2, 128), SD1, H100)
        assert planned.frozen == frozen


def test_an_open_micro_batch_divides_the_grain() -> None:
    """Of 64 samples per rank 20 would fit and 16 divide them; the grain of 24 leaves 8."""
    buckets = {"images": "-", "buckets": {"side": 512, "grain": 24}}
    squares = settle((1, 4), micro_batch="auto", gradient_checkpointing=False, zero=2)[1]
    assert squares > 8
    assert settle((1, 4), micro_batch="auto", zero=2, data=buckets)[1:] == (8, 8)


@pytest.mark.parametrize(
    ("changes", "hardware", "begun", "precision"),
    [
        ({}, H100, None, "bf16"),
        ({}, RTX_3090, None, "bf16"),
        ({}, V100, None, "fp32"),
        ({}, UNKNOWN, None, "bf16"),
        ({}, CPUS, None, "fp32"),
        ({"zero": 0}, H100, None, "fp32"),
        ({"engine": "fsdp2"}, H100, None, "bf16"),
        ({}, H100, "fp32", "fp32"),
        ({}, CPUS, "fp16", "fp16"),
        ({"precision": "fp16"}, H100, "fp32", "fp16"),  # a resume refuses it
        ({"optimizer": ADAFACTOR}, H100, None, "fp32"),  # whose stage has no other
        ({"optimizer": ADAFACTOR, "engine": "fsdp2"}, H100, None, "bf16"),
        ({"optimizer": EIGHT_BITS}, H100, None, "bf16"),
    ],
)
def test_precision(changes: dict[str, Any], hardware: Hardware, begun: str | None, precision: str) -> None:
    settled, reason = settle_precision(config(**changes), hardware, begun)
    assert settled.precision == precision
    assert (reason is None) == ("precision" in changes)


@pytest.mark.parametrize(("changes", "begun"), [({"zero": 0}, "bf16"), ({"engine": "fsdp2"}, "fp16")])
def test_a_precision_that_a_run_was_begun_in_still_disagrees(changes: dict[str, Any], begun: str) -> None:
    with pytest.raises(UserError, match=f"precision:? {begun} needs|which precision {begun} needs"):
        settle_precision(config(**changes), H100, begun)


def test_gpus_without_bf16_are_refused_with_the_cure() -> None:
    for precision, capability in (("bf16", "8.0"), ("bf16", "12.0"), ("bf16", None), ("fp16", "7.0"), ("fp32", "7.0")):
        check_precision(precision, capability)
    with pytest.raises(UserError, match=r"these have 7\.5; ask for others, or write precision: fp16 or fp32"):
        check_precision("bf16", "7.5")


@pytest.mark.parametrize(
    ("shape", "hardware", "size", "changes", "chosen"),
    [
        ((1, 8), H100, SD1, {"micro_batch": 8}, (1, 8, 4)),  # 16 bits: never 0
        ((1, 8), H100, SD1, {"micro_batch": 8, "precision": "fp32"}, (0, 8, 4)),
        ((1, 8), H100, SD1, {"micro_batch": 8, "precision": "fp32", "offload": True}, (1, 8, 4)),
        ((1, 8), RTX_3090, SD1, {"micro_batch": 8}, (1, 8, 4)),
        ((1, 8), RTX_3090, SD1, {"micro_batch": 16}, (2, 16, 2)),
        ((1, 8), H100, SDXL, {"micro_batch": 8, "resolution": 1024, "ema": True}, (2, 8, 4)),
        ((1, 8), RTX_3090, SDXL, {"micro_batch": 8, "resolution": 1024}, (3, 8, 4)),  # nothing fits: what takes least
        ((1, 8), UNKNOWN, SD1, {"micro_batch": 8}, (2, 8, 4)),
        ((1, 8), H100, NOTHING, {"micro_batch": 8}, (2, 8, 4)),
        ((1, 2), CPUS, SD1, {"micro_batch": 1, "precision": "fp32"}, (3, 1, 128)),
        ((1, 8), H100, SD1, {"micro_batch": 8, "zero": 3}, (3, 8, 4)),
        ((1, 8), H100, SD1, {"micro_batch": 8, "optimizer": ADAFACTOR, "precision": "fp32"}, (0, 8, 4)),
        ((1, 8), RTX_3090, SDXL, {"micro_batch": 8, "optimizer": ADAFACTOR, "precision": "fp32"}, (0, 8, 4)),  # or none
        ((1, 1), H100, SDXL, {"micro_batch": 1, "optimizer": ADAFACTOR, "engine": "fsdp2"}, (UNKNOWN_ZERO, 1, 256)),
        # 2.6 billion parameters end to end are more than its kernels count
        ((1, 1), H100, SDXL, {"micro_batch": 1, "optimizer": EIGHT_BITS}, (3, 1, 256)),
        ((1, 2), H100, SDXL, {"micro_batch": 1, "optimizer": EIGHT_BITS}, (1, 1, 128)),
    ],
)
def test_the_lowest_stage_that_fits(
    shape: tuple[int, int],
    hardware: Hardware,
    size: PipelineSize,
    changes: dict[str, Any],
    chosen: tuple[int, int, int],
) -> None:
    assert settle(shape, hardware, size, **changes) == chosen


@pytest.mark.parametrize(
    ("shape", "size", "changes", "sentence"),
    [
        (
            (2, 4),
            SD1,
            {"optimizer": ADAFACTOR, "engine": "fsdp2"},
            "engine: fsdp2 cuts each parameter over 8 ranks, and optimizer.name: adafactor needs its rows and columns; "
            "write zero: 0 and precision: fp32 in place of engine: fsdp2, or optimizer.name: adamw or adamw_8bit",
        ),
        (
            (1, 1),
            SDXL,
            {"optimizer": EIGHT_BITS, "zero": 2},
            "zero: 2 lays 2,567,463,684 parameters of a rank end to end, and optimizer.name: adamw_8bit counts no "
            "more than 2,147,483,647; write zero: 3, engine: fsdp2, or ask for more GPUs",
        ),
    ],
)
def test_an_optimizer_that_cannot_be_sharded_so_is_refused(
    shape: tuple[int, int], size: PipelineSize, changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        settle(shape, H100, size, micro_batch=1, **changes)


@pytest.mark.parametrize(
    ("shape", "hardware", "size", "changes", "chosen"),
    [
        ((1, 8), H100, SD1, {}, (1, 32, 1)),  # all of a rank's share
        ((1, 1), H100, SD1, {"ema": True, "batch": 192}, (1, 48, 4)),
        ((1, 8), H100, SD1, {"batch": 2048}, (1, 64, 4)),
        ((1, 8), RTX_3090, SD1, {}, (2, 16, 2)),  # stage 1 would take 8
        ((1, 8), RTX_3090, SD1, {"gradient_checkpointing": True}, (1, 32, 1)),
        ((1, 8), H100, SDXL, {"resolution": 1024, "ema": True}, (2, 8, 4)),
        ((1, 8), H100, SDXL, {"resolution": 1024, "ema": True, "engine": "fsdp2"}, (UNKNOWN_ZERO, 8, 4)),
        ((1, 1), H100, SDXL, {"resolution": 1024, "engine": "fsdp2", "offload": True}, (UNKNOWN_ZERO, 8, 32)),
        ((1, 8), H100, SDXL, {"resolution": 1024, "ema": True, "zero": 1}, (1, 4, 8)),
    ],
)
def test_the_largest_micro_batch_that_fits(
    shape: tuple[int, int],
    hardware: Hardware,
    size: PipelineSize,
    changes: dict[str, Any],
    chosen: tuple[int, int, int],
) -> None:
    assert settle(shape, hardware, size, micro_batch="auto", **changes) == chosen


@pytest.mark.parametrize("nodes", [1, 2, 4])
@pytest.mark.parametrize(
    ("memory", "size", "resolution"),
    [
        *((memory, SD1, resolution) for memory in (12.0, 16.0, 24.0, 48.0, 79.6) for resolution in (512, 768)),
        *((memory, SDXL, 1024) for memory in (40.0, 48.0, 79.6, 140.0)),
    ],
)
def test_what_is_chosen_leaves_a_margin(memory: float, nodes: int, size: PipelineSize, resolution: int) -> None:
    hardware = Hardware(gpu_memory=memory, compute_capability="9.0")
    settled = settle_whole((nodes, 8), hardware, size, micro_batch="auto", resolution=resolution)
    plan = settled.batch_plan
    assert plan.batch == 256
    held = estimate_device_memory(settled.config, plan, size, hardware)
    assert held.total is not None
    assert held.total <= (1 - MARGIN) * memory * GIB
    twice = BatchPlan(plan.shape, 2 * plan.micro_batch, 1)
    if 256 // plan.shape.world_size % twice.micro_batch == 0:
        larger = estimate_device_memory(settled.config, twice, size, hardware)
        assert larger.fits(memory * GIB) is False


@pytest.mark.parametrize(
    ("hardware", "size", "sentence"),
    [
        (UNKNOWN, SD1, "how large a GPU is, is not known; write gpu_memory into the site profile, or a number"),
        (Hardware(gpus=False), SD1, "write memory_per_node into the site profile"),
        (H100, NOTHING, "micro_batch: auto finds none for me/mine, because how much one of its samples takes"),
        (Hardware(gpu_memory=4.0), SD1, "not one sample fits into a GPU beside the model; write gradient_checkpoint"),
    ],
)
def test_a_micro_batch_that_nobody_can_tell_is_refused(hardware: Hardware, size: PipelineSize, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        settle((1, 8), hardware, size, micro_batch="auto")


def test_the_frozen_models_are_in_their_own_dtype_and_several_ranks_have_communicators() -> None:
    plan = BatchPlan(Shape(1, 1), 1, 1)
    held = {
        precision: estimate_device_memory(config(precision=precision, zero=1), plan, SD1, H100)
        for precision in ("fp32", "bf16", "fp16")
    }
    vae, text = SD1.parameters["vae"], SD1.parameters["text_encoder"]
    assert held["bf16"].frozen == held["fp16"].frozen == 2 * (vae + text)
    on_v100 = estimate_device_memory(config(precision="fp16", zero=1), plan, SD1, V100)
    assert on_v100.frozen == 4 * vae + 2 * text, "whose VAE would overflow in fp16"
    assert held["fp32"].frozen == 4 * (vae + text)
    two = estimate_device_memory(config(precision="bf16", zero=1), BatchPlan(Shape(1, 2), 1, 1), SD1, H100)
    assert two.runtime - held["bf16"].runtime >= GIB


@pytest.mark.parametrize(
    ("text", "memory"), [("200G", 200.0), ("512000", 500.0), ("1T", 1024.0), ("2048MB", 2.0), ("0", None), ("x", None)]
)
def test_memory_as_sbatch_has_it(text: str, memory: float | None) -> None:
    assert parse_memory(text) == memory
