"""The objective's tables, refusals and defaults; its losses are held against the papers in test_losses."""

from collections.abc import Mapping
from typing import get_args

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from torch.nn import functional as F

from configs.errors import UserError
from configs.schema import LossWeighting, Prediction, RunConfig
from train.demo.make_base import NOISE_SCHEDULE
from train.objective import LOSSES, PREDICTIONS, WEIGHTINGS, Objective, make_objective
from train.objective.errors import measure_by_huber

T, M, GAMMA = 1000, 6, 3.0
TIMESTEPS = torch.tensor([0, 80, 250, 400, 700, 999])
CPU = torch.device("cpu")
WEIGHING = [name for name in WEIGHTINGS if name != "uniform"]


def objective(
    prediction: str, dtype: torch.dtype = torch.float32, schedule: Mapping[str, object] = {}, **changes: object
) -> Objective:
    """Of Stable Diffusion's noise schedule, or what `schedule` makes of it; `changes` are to the config."""
    if changes.get("loss_weighting") in ("min_snr", "soft_min_snr"):
        changes = {"min_snr_gamma": GAMMA} | changes
    config = RunConfig(name="o", model="m", data={"images": "-"}, **changes)
    noise_scheduler = DDPMScheduler.from_config(NOISE_SCHEDULE | {"prediction_type": prediction} | dict(schedule))
    return make_objective(config, noise_scheduler, dtype, CPU)


def micro_batch() -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """x_0, (6, 4, 8, 8), and what is drawn for it."""
    x_0, noise = np.random.default_rng(0).standard_normal((2, M, 4, 8, 8)).astype(np.float32)
    return torch.from_numpy(x_0), {"noise": torch.from_numpy(noise), "timestep": TIMESTEPS}


def alpha_bar() -> np.ndarray:
    """Stable Diffusion's noise schedule, in float64."""
    roots = np.linspace(NOISE_SCHEDULE["beta_start"] ** 0.5, NOISE_SCHEDULE["beta_end"] ** 0.5, T)
    return np.cumprod(1 - roots**2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_uniform_weighting_is_the_plain_mean_squared_error_to_the_bit(prediction: str, dtype: torch.dtype) -> None:
    """Runs that were begun before there were weightings go on with the same losses and gradients."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16,),
        mid_block_type=None,
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        layers_per_block=1,
        cross_attention_dim=8,
        attention_head_dim=2,
        norm_num_groups=4,
    ).to(dtype)
    x_0, draws = micro_batch()
    noise = draws["noise"]
    text = torch.randn(M, 7, 8).to(dtype)
    noise_scheduler = DDPMScheduler.from_config(NOISE_SCHEDULE)
    x_t = noise_scheduler.add_noise(x_0, noise, TIMESTEPS)
    target = noise if prediction == "epsilon" else noise_scheduler.get_velocity(x_0, noise, TIMESTEPS)
    plain = F.mse_loss(unet(x_t.to(dtype), TIMESTEPS, text, return_dict=False)[0].float(), target, reduction="mean")
    plain.backward()
    gradients = [parameter.grad for parameter in unet.parameters()]
    unet.zero_grad()

    ours = objective(prediction, dtype).loss(unet, x_0, draws, {"encoder_hidden_states": text})
    ours.backward()
    assert ours.item() == plain.item()
    assert all(torch.equal(p.grad, before) for p, before in zip(unet.parameters(), gradients, strict=True))


@pytest.mark.parametrize("weighting", WEIGHING)
def test_a_weighting_is_one_loss_whatever_is_predicted(weighting: str) -> None:
    """One guess of x_0, told as ε, as v and as itself: the weighted errors agree at every timestep."""
    bar = torch.from_numpy(alpha_bar())[:, None]
    alpha, sigma = bar.sqrt(), (1 - bar).sqrt()
    x_0, noise, guess = torch.randn(3, T, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x_t = alpha * x_0 + sigma * noise
    guessed_noise = (x_t - alpha * guess) / sigma
    errors = {
        "epsilon": noise - guessed_noise,
        "v_prediction": (alpha * noise - sigma * x_0) - (alpha * guessed_noise - sigma * guess),
        "sample": x_0 - guess,
    }
    assert errors.keys() == PREDICTIONS.keys()
    weights = {name: objective(name, loss_weighting=weighting).weights.double() for name in errors}
    losses = [weights[name] * error.square().mean(1) for name, error in errors.items()]
    for other in losses[1:]:
        torch.testing.assert_close(other, losses[0], rtol=2e-4, atol=0)  # 1 − ᾱ_0 has 4 digits fewer in fp32


def test_weights_are_their_closed_forms() -> None:
    """At every timestep, to fp32's last bit."""
    bar = DDPMScheduler.from_config(NOISE_SCHEDULE).alphas_cumprod.double()
    snr = bar / (1 - bar)
    forms = {
        ("min_snr", "v_prediction"): snr.clamp(max=GAMMA) / (snr + 1),
        ("min_snr", "epsilon"): (GAMMA / snr).clamp(max=1),
        ("min_snr", "sample"): snr.clamp(max=GAMMA),
        ("soft_min_snr", "sample"): snr * GAMMA / (snr + GAMMA),
        ("debiased", "epsilon"): snr**-0.5,
        ("debiased", "v_prediction"): bar.sqrt() * (1 - bar).sqrt(),
    }
    for (weighting, prediction), form in forms.items():
        weights = objective(prediction, loss_weighting=weighting).weights
        torch.testing.assert_close(weights, form.float(), rtol=2.4e-7, atol=0)


def test_gamma_is_where_min_snr_ends_and_soft_min_snr_is_halfway() -> None:
    hard, soft = (objective("sample", loss_weighting=name).weights for name in ("min_snr", "soft_min_snr"))
    bar = torch.from_numpy(alpha_bar())
    snr = bar / (1 - bar)
    assert hard.max() == GAMMA
    assert (hard == GAMMA).sum() == (snr >= GAMMA).sum()
    corner = int((snr - GAMMA).abs().argmin())
    assert soft[corner] == pytest.approx(GAMMA / 2, rel=5e-3), "where SNR is γ, within a timestep"
    assert ((hard / 2 < soft) & (soft < hard)).all()


def test_small_errors_are_squares_under_huber_and_large_ones_are_absolute() -> None:
    """With 2c before the absolute value, and c from 1 to 0.1 as noise grows."""
    snr = torch.tensor([torch.inf, 1.0, 0.0])
    for error, power in ((1e-4, 2), (1e4, 1)):
        cost = measure_by_huber(torch.full((3, 1, 1, 1), error), torch.zeros(3, 1, 1, 1), snr).flatten()
        c = torch.tensor([1.0, 0.1 + 0.9 / 4, 0.1])
        expected = error**2 * torch.ones(3) if power == 2 else 2 * c * (error - c)
        torch.testing.assert_close(cost, expected, rtol=2e-6, atol=0)


ZERO_TERMINAL_SNR = {"rescale_betas_zero_snr": True}


@pytest.mark.parametrize("weighting", WEIGHING)
def test_epsilon_has_no_weight_where_nothing_is_left_of_x_0(weighting: str) -> None:
    with pytest.raises(
        UserError,
        match=rf"{weighting} has no weight for prediction: epsilon at timestep 999, where .* is 0; write prediction: "
        "v_prediction or sample, or loss_weighting: uniform",
    ):
        objective("epsilon", schedule=ZERO_TERMINAL_SNR, loss_weighting=weighting)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(
    ("prediction", "weighting"),
    [(p, w) for p in PREDICTIONS for w in WEIGHTINGS if p != "epsilon" or w == "uniform"],
)
def test_zero_terminal_snr_gives_finite_losses_and_gradients(prediction: str, weighting: str, loss: str) -> None:
    learnt = objective(prediction, schedule=ZERO_TERMINAL_SNR, loss_weighting=weighting, loss=loss)
    assert learnt.noise_scheduler.alphas_cumprod[-1] == 0
    assert learnt.weights is None or learnt.weights[-1] == 0
    a = torch.tensor(0.7, requires_grad=True)
    x_0, draws = micro_batch()
    last = draws | {"timestep": torch.full((M,), T - 1)}
    value = learnt.loss(lambda x_t, t, return_dict: (a * x_t,), x_0, last, {})
    value.backward()
    assert value.isfinite()
    assert a.grad.isfinite()


def test_a_schedule_that_begins_without_noise() -> None:
    """There the ratio is infinite: what is weighed by its root has no weight for x_0, which x_t shows as it is."""
    schedule = {"trained_betas": [0.0, *np.linspace(0.001, 0.02, T - 1)]}
    for prediction in PREDICTIONS:
        for weighting in WEIGHING:
            if (prediction, weighting) != ("sample", "debiased"):
                weights = objective(prediction, schedule=schedule, loss_weighting=weighting).weights
                assert weights.isfinite().all()
    with pytest.raises(UserError, match=r"at timestep 0, where .* is inf; write prediction: epsilon or v_prediction"):
        objective("sample", schedule=schedule, loss_weighting="debiased")


@pytest.mark.parametrize(
    "schedule",
    [
        {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02},
        {"beta_schedule": "squaredcos_cap_v2"},
        {"beta_schedule": "scaled_linear", "num_train_timesteps": 50},
        {"trained_betas": np.linspace(0.001, 0.3, 20).tolist(), "num_train_timesteps": 20},
        {"clip_sample": True, "steps_offset": 0},
    ],
    ids=str,
)
def test_the_schedule_is_the_pipelines(schedule: dict[str, object]) -> None:
    """Whatever it is, and however many timesteps it has."""
    count = schedule.get("num_train_timesteps", T)
    learnt = objective("v_prediction", schedule=schedule, loss_weighting="min_snr", timesteps={"last": None})
    assert len(learnt.weights) == len(learnt.snr) == count
    assert learnt.timestep(np.nextafter(1, 0)) == count - 1
    x_0, draws = micro_batch()
    draws["timestep"] = torch.full((M,), count - 1)
    seen = []
    learnt.loss(lambda x_t, t, return_dict: (seen.append(x_t) or x_t,), x_0, draws, {})
    betas = DDPMScheduler.from_config(NOISE_SCHEDULE | schedule).betas.double()
    bar = torch.prod(1 - betas)
    torch.testing.assert_close(seen[0], (bar.sqrt() * x_0 + (1 - bar).sqrt() * draws["noise"]).float())


def test_every_choice_of_the_config_is_there() -> None:
    assert tuple(PREDICTIONS) == get_args(Prediction)
    assert tuple(WEIGHTINGS) == get_args(LossWeighting)
    assert tuple(LOSSES) == get_args(RunConfig.model_fields["loss"].annotation)
