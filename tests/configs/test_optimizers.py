"""What planning says of an optimizer before anything is queued."""

from typing import Any

import pytest

from configs import optimizers
from configs.errors import UserError
from configs.optimizers import OPTIMIZERS, check_package, describe_optimizer, warn_of_optimizer
from configs.schema import RunConfig
from launcher.local.backend import LocalBackend
from launcher.plan.memory_plan import plan_memory
from tests.configs.solve.test_settle import H100, SD1, settle_whole


def config(name: str, **changes: Any) -> RunConfig:
    least = {"name": "a", "model": "m", "data": {"images": "i"}, "batch": 1, "optimizer": {"name": name}}
    return RunConfig.model_validate(least | changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "adamw, β 0.9 and 0.999, ε 1e-08, weight decay 0.01"),
        (
            {"name": "adamw_8bit", "decay": "matrices"},
            "adamw_8bit, β 0.9 and 0.999, ε 1e-08, weight decay 0.01 of matrices",
        ),
        ({"name": "adafactor", "weight_decay": 0}, "adafactor, β2 decay -0.8, clip threshold 1, weight decay 0"),
    ],
)
def test_an_optimizer_is_told_with_the_settings_that_it_has(changes: dict[str, Any], words: str) -> None:
    assert describe_optimizer(config("adamw", optimizer=changes)) == words


def test_a_package_that_is_not_there_is_named_with_the_command_that_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    check_package(config("adamw_8bit"))
    monkeypatch.setattr(optimizers, "find_spec", lambda name: None)
    sentence = (
        "optimizer.name: adamw_8bit needs bitsandbytes, which is not installed here; run pip install "
        "'lockstep[8bit]', or write optimizer.name: adamw"
    )
    with pytest.raises(UserError) as refused:
        LocalBackend().check_config(config("adamw_8bit"))
    assert str(refused.value) == sentence
    assert next(warn_of_optimizer(config("adamw_8bit", zero=2))) == sentence, "plan may be made for another machine"
    for name in ("adamw", "adafactor"):
        LocalBackend().check_config(config(name))


def test_what_keeps_moments_of_32_bits_all_the_same_is_told() -> None:
    told = (
        "optimizer.name: adamw_8bit keeps moments of 32 bits for what has fewer than 4,096 elements on a rank, such as "
        "norms and biases"
    )
    for settings, notes in (
        ({"zero": 0, "precision": "fp32"}, [told]),
        ({"engine": "fsdp2"}, [told]),
        ({"zero": 1}, []),  # all of a rank's parameters are one tensor there
    ):
        assert list(warn_of_optimizer(config("adamw_8bit", **settings))) == notes
        assert list(warn_of_optimizer(config("adamw", **settings))) == []


def test_rows_and_columns_of_a_shape() -> None:
    """As torch.optim.Adafactor: means over the last two dimensions, one after the other."""
    states = OPTIMIZERS["adafactor"].states
    counted = {shape: [count(shape) for count in states.values()] for shape in ((6, 5), (4, 3, 2, 2), (7,), ())}
    assert counted == {(6, 5): [6, 5, 0], (4, 3, 2, 2): [24, 24, 0], (7,): [0, 0, 7], (): [0, 0, 1]}


def test_plan_lists_only_what_the_optimizer_takes() -> None:
    for name, options, stages in (
        (
            "adamw",
            {"lora: true", "optimizer: {name: adamw_8bit}", "zero: 1, offload: true", "engine: fsdp2, without zero"},
            7,
        ),
        ("adafactor", {"lora: true"}, 1),
    ):
        changes = {"optimizer": {"name": name}, "precision": "fp32", "zero": 0, "gradient_checkpointing": True}
        settled = settle_whole((1, 8), H100, SD1, micro_batch=1, **changes)
        memory = plan_memory(settled, H100, SD1)
        assert len(memory.alternatives) == stages
        found = {saving.option for saving in memory.savings if not saving.option.startswith("data.cache")}
        assert found == options
        assert {saving.option for saving in memory.savings if saving.is_other_run} <= {
            "lora: true",
            "optimizer: {name: adamw_8bit}",
        }
