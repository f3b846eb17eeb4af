"""What planning knows of a run's objective without torch: whether the model's scheduler allows it, and in words."""

import json
from pathlib import Path

import pytest

from configs.errors import UserError
from configs.objective import check_objective, describe_objective, describe_timesteps, is_plainest
from configs.schema import RunConfig


def config(**changes: object) -> RunConfig:
    return RunConfig(name="a", model="m", data={"images": "-"}, **changes)


def with_scheduler(folder: Path, settings: object) -> Path:
    """A model's folder, as far as it is looked at here."""
    (folder / "scheduler").mkdir()
    text = settings if isinstance(settings, str) else json.dumps(settings)
    (folder / "scheduler" / "scheduler_config.json").write_text(text)
    return folder


V = {"prediction_type": "v_prediction"}
ZERO = {"rescale_betas_zero_snr": True}


@pytest.mark.parametrize(
    ("scheduler", "changes", "prediction"),
    [
        ({}, {}, "epsilon"),
        (V, {}, "v_prediction"),
        (V, {"prediction": "epsilon"}, "epsilon"),
        ({"prediction_type": "flow"}, {"prediction": "sample"}, "sample"),
        (ZERO, {}, "epsilon"),
        (ZERO, {"zero_terminal_snr": False, "loss_weighting": "min_snr"}, "epsilon"),
        (ZERO, {"prediction": "v_prediction", "loss_weighting": "min_snr"}, "v_prediction"),
        ({}, {"zero_terminal_snr": True, "prediction": "sample", "loss_weighting": "debiased"}, "sample"),
        (V, {"zero_terminal_snr": True}, "v_prediction"),
        ({"num_train_timesteps": 50, "trained_betas": [0.01] * 50}, {"timesteps": {"first": 3, "last": 49}}, "epsilon"),
    ],
)
def test_what_is_predicted(tmp_path: Path, scheduler: object, changes: dict, prediction: str) -> None:
    assert check_objective(config(**changes), with_scheduler(tmp_path, scheduler)) == prediction


@pytest.mark.parametrize(
    ("scheduler", "changes", "answer"),
    [
        ({"prediction_type": "flow"}, {}, "predicts flow; write prediction: epsilon or v_prediction or sample"),
        ({}, {"zero_terminal_snr": True}, "predicts epsilon, .* write prediction: v_prediction or sample"),
        (
            ZERO,
            {"loss_weighting": "min_snr"},
            "rescale_betas_zero_snr .* write prediction: v_prediction or sample, or ",
        ),
        (ZERO, {"loss_weighting": "soft_min_snr"}, "soft_min_snr gives epsilon's loss no weight where .* is 0"),
        (ZERO, {"loss_weighting": "debiased"}, "debiased gives epsilon's loss no weight where .* is 0"),
        ({}, {"timesteps": {"last": 1000}}, r"timesteps\.last: 1000 is beyond .* 1,000 timesteps .* write at most 999"),
        ({"num_train_timesteps": 50}, {"timesteps": {"first": 50}}, r"timesteps\.first: 50 .* write at most 49"),
        (
            V,
            {"zero_terminal_snr": True, "timesteps": {"last": 998}},
            r"last: 998 leaves out timestep 999, .* begin with",
        ),
        ({"trained_betas": [0.01] * 50}, {}, "has 50 trained_betas and num_train_timesteps: 1000"),
        ({"num_train_timesteps": "1000"}, {}, "num_train_timesteps is '1000', which counts nothing"),
        ({"_class_name": "EDMEulerScheduler"}, {}, "is a EDMEulerScheduler, which adds no noise by betas"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, {"prediction": "sample"}, "adds no noise by betas"),
        ("", {}, "cannot be read .*; fetch the model again"),
        ("[]", {}, "cannot be read .*; fetch the model again"),
        ("{", {}, "cannot be read .*; fetch the model again"),
    ],
)
def test_what_cannot_be_learnt_is_refused_before_anything_is_queued(
    tmp_path: Path, scheduler: object, changes: dict, answer: str
) -> None:
    with pytest.raises(UserError, match=answer) as refusal:
        check_objective(config(**changes), with_scheduler(tmp_path, scheduler))
    assert str(tmp_path / "scheduler" / "scheduler_config.json") in str(refusal.value)


def test_the_plainest_objective_is_the_default() -> None:
    assert is_plainest(config())
    for changes in ({"noise_offset": 0.1}, {"loss": "huber"}, {"prediction": "epsilon"}, {"timesteps": {"first": 1}}):
        assert not is_plainest(config(**changes)), changes


def test_an_objective_in_words() -> None:
    every = config(
        prediction="v_prediction",
        loss_weighting="soft_min_snr",
        loss="huber",
        noise_offset=0.05,
        input_perturbation=0.1,
        zero_terminal_snr=True,
        timesteps={"distribution": "logit_normal", "std": 0.5, "last": 900, "stratified": True},
    )
    assert describe_objective(every) == {
        "prediction": "v_prediction",
        "loss weighting": "soft min-SNR, γ = 5",
        "loss": "pseudo-Huber, by its schedule",
        "noise": "offset 0.05, input perturbation 0.1, zero terminal signal-to-noise ratio",
        "timesteps": "logit-normal, mean 0, std 0.5; from 0 to 900; stratified over the batch",
    }
    assert describe_timesteps(config(timesteps={"first": 100}).timesteps) == (
        "all equally often; from 100 to the scheduler's last"
    )
