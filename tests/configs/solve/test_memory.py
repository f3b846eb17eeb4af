"""Parameter counts from headers, and what a rank holds, against what DeepSpeed really holds."""

from pathlib import Path

import pytest

from configs.known_models import SD1
from configs.schema import RunConfig
from configs.solve.memory import estimate_checkpoint, estimate_model_states, list_alternatives

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def settings(**changes: object) -> RunConfig:
    return RunConfig.model_validate({"name": "memory", "model": "-", "data": {"images": "-"}, "batch": 8, **changes})


@pytest.mark.parametrize(
    ("zero", "precision", "world", "per_parameter"),
    [
        # Counted on real DeepSpeed 0.19.8 engines after the last backward pass of a step.
        (0, "fp32", 1, 16),
        (0, "fp32", 2, 16),
        (1, "fp32", 1, 20),
        (1, "fp32", 2, 14),
        (1, "bf16", 1, 20),
        (1, "bf16", 2, 14),
        (2, "fp32", 1, 20),
        (2, "fp32", 2, 12),
        (2, "bf16", 1, 18),
        (2, "bf16", 2, 10),
        (3, "fp32", 1, 20),
        (3, "fp32", 2, 10),
        (3, "bf16", 1, 18),
        (3, "bf16", 2, 9),
    ],
)
def test_model_states_are_what_was_counted(zero: int, precision: str, world: int, per_parameter: int) -> None:
    states = estimate_model_states(settings(zero=zero, precision=precision), 1000, world, live_parameters=0)
    assert states.gpu == per_parameter * 1000
    assert states.cpu == 0


def test_ema_adds_its_share_and_offload_moves_the_optimizer() -> None:
    plain = estimate_model_states(settings(zero=2, precision="bf16"), 1000, 4)
    averaged = estimate_model_states(settings(zero=2, precision="bf16", ema=True), 1000, 4)
    moved = estimate_model_states(settings(zero=2, precision="bf16", ema=True, offload=True), 1000, 4)
    assert averaged.gpu - plain.gpu == 4 * 250
    assert averaged.gpu - moved.gpu == 16 * 250  # master, two moments, EMA
    assert moved.cpu >= 16 * 250


@pytest.mark.parametrize(
    ("changes", "world", "accumulation", "gpu", "cpu"),
    [
        ({}, 1, 1, 2 + 4 + 12, 0),
        ({}, 4, 3, 2 + 1 + 3, 0),
        ({"reshard": False}, 4, 1, 2 + 1 + 3, 0),
        ({"reshard": False}, 4, 3, 2 + 4 + 3, 0),
        ({"ema": True}, 4, 1, 2 + 1 + 4, 0),
        ({"precision": "fp32"}, 4, 1, 4 + 1 + 3, 0),
        ({"offload": True}, 4, 1, 2, 1 + 3),
        ({"offload": True, "reshard": False}, 4, 3, 2 + 4, 1 + 3),
    ],
)
def test_model_states_under_fsdp2(
    changes: dict[str, object], world: int, accumulation: int, gpu: int, cpu: int
) -> None:
    """In bytes per parameter, of so few that all are gathered at one time."""
    config = settings(**({"engine": "fsdp2", "precision": "bf16"} | changes))
    states = estimate_model_states(config, 1000, world, accumulation=accumulation)
    assert (states.gpu, states.cpu) == (gpu * 1000, cpu * 1000)
    large = estimate_model_states(config, 10**9, world, accumulation=accumulation)
    assert (large.gpu < gpu * 10**9) == config.reshard


@pytest.mark.parametrize(
    ("name", "changes", "world", "per_parameter"),
    [
        ("adamw_8bit", {"zero": 0, "precision": "fp32"}, 1, 8 + 2.03125),
        ("adamw_8bit", {"zero": 2, "precision": "bf16"}, 2, 2 + (4 + 4 + 2.03125) / 2),
        ("adamw_8bit", {"engine": "fsdp2", "precision": "bf16"}, 4, 2 + (4 + 4 + 2.03125) / 4),
        ("adafactor", {"zero": 0, "precision": "fp32"}, 4, 8 + 2.13),
        ("adafactor", {"engine": "fsdp2", "precision": "bf16"}, 1, 2 + 4 + 4 + 2.13),
    ],
)
def test_model_states_of_other_optimizers(
    name: str, changes: dict[str, object], world: int, per_parameter: float
) -> None:
    states = estimate_model_states(settings(optimizer={"name": name}, **changes), 3200, world, live_parameters=0)
    assert states.gpu == pytest.approx(per_parameter * 3200, abs=1)


def test_refused_combinations_are_not_listed() -> None:
    whole = [
        (c.zero, c.offload) for c in list_alternatives(settings(precision="fp32", optimizer={"name": "adafactor"}))
    ]
    assert whole == [(0, False)]
    listed = [(c.zero, c.offload) for c in list_alternatives(settings(precision="bf16"))]
    assert listed == [(1, False), (1, True), (2, False), (2, True), (3, False), (3, True)]
    assert next(list_alternatives(settings(precision="fp32"))).zero == 0
    assert len(list(list_alternatives(settings(engine="fsdp2")))) == 4


def test_checkpoint_sizes() -> None:
    assert estimate_checkpoint(settings(ema=True), SD1.parameters["unet"]) == 16 * SD1.parameters["unet"]
    assert estimate_checkpoint(settings(), SD1.parameters["unet"]) == 12 * SD1.parameters["unet"]
    assert estimate_checkpoint(settings(optimizer={"name": "adamw_8bit"}), 100) == 1200, "fp32 there"
    assert estimate_checkpoint(settings(optimizer={"name": "adafactor"}), 100) == 613


@pytest.mark.parametrize("zero", [1, 2])
def test_the_formulas_against_real_engines(tmp_path: Path, zero: int) -> None:
    from tests.ranks import run_ranks

    run_ranks(1, Path(__file__).with_name("count_states.py"), zero, "bf16", tmp_path / "counted")
    states = estimate_model_states(settings(zero=zero, precision="bf16"), 1000, 1)
    assert float((tmp_path / "counted").read_text()) == pytest.approx(states.gpu / 1000, rel=0.02)


def test_zero_0_sums_micro_batches_up_beside_the_buckets_of_several_ranks() -> None:
    """DistributedDataParallel's buckets stay, and a step begins without gradients: those of `no_sync` are others."""
    config = settings(zero=0, precision="fp32")
    once = {world: estimate_model_states(config, 1000, world).gpu for world in (1, 2)}
    more = {world: estimate_model_states(config, 1000, world, accumulation=3).gpu for world in (1, 2)}
    assert more == {1: once[1], 2: once[2] + 4 * 1000}
