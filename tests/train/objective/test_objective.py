"""The objective against the papers' formulas, written out here once more in float64."""

from functools import partial
from typing import get_args

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from torch.nn import functional as F

from configs.errors import UserError
from configs.schema import Prediction, RunConfig
from train.demo.make_base import NOISE_SCHEDULE
from train.objective import PREDICTIONS, WEIGHTINGS, Objective, make_objective
from train.objective.timesteps import pick_uniformly

T, M, GAMMA = 1000, 6, 3.0
TIMESTEPS = torch.tensor([0, 80, 250, 400, 700, 999])
CPU = torch.device("cpu")


def objective(prediction: str, weighting: str, dtype: torch.dtype = torch.float32, **schedule: object) -> Objective:
    changes = {"loss_weighting": weighting} | ({"min_snr_gamma": GAMMA} if weighting == "min_snr" else {})
    config = RunConfig(name="o", model="m", data={"images": "-"}, **changes)
    noise_scheduler = DDPMScheduler.from_config(NOISE_SCHEDULE | {"prediction_type": prediction} | schedule)
    return make_objective(config, noise_scheduler, dtype, CPU)


def micro_batch() -> tuple[torch.Tensor, torch.Tensor]:
    """x_0 and ε, (6, 4, 8, 8)."""
    draw = np.random.default_rng(0)
    x_0, noise = draw.standard_normal((2, M, 4, 8, 8)).astype(np.float32)
    return torch.from_numpy(x_0), torch.from_numpy(noise)


def alpha_bar() -> np.ndarray:
    """Stable Diffusion's noise schedule, in float64."""
    roots = np.linspace(NOISE_SCHEDULE["beta_start"] ** 0.5, NOISE_SCHEDULE["beta_end"] ** 0.5, T)
    return np.cumprod(1 - roots**2)


class Affine(torch.nn.Module):
    """A denoiser of two weights: a x_t + b, so that its gradient can be written down."""

    def __init__(self) -> None:
        super().__init__()
        self.a = torch.nn.Parameter(torch.tensor(0.7))
        self.b = torch.nn.Parameter(torch.tensor(-0.2))

    def forward(
        self, x_t: torch.Tensor, t: torch.Tensor, return_dict: bool, shift: torch.Tensor
    ) -> tuple[torch.Tensor]:
        assert not return_dict
        return (self.a * x_t + self.b + shift,)


def expected(prediction: str, weighting: str) -> tuple[float, float, float]:
    """Loss and its derivatives by a and b."""
    x_0, noise = (tensor.numpy().astype(np.float64) for tensor in micro_batch())
    bar = alpha_bar()[TIMESTEPS.numpy()][:, None, None, None]
    alpha, sigma, snr = np.sqrt(bar), np.sqrt(1 - bar), (bar / (1 - bar)).ravel()
    x_t = alpha * x_0 + sigma * noise
    target = {"epsilon": noise, "v_prediction": alpha * noise - sigma * x_0, "sample": x_0}[prediction]
    clipped = np.minimum(snr, GAMMA)
    min_snr = {"epsilon": clipped / snr, "v_prediction": clipped / (snr + 1), "sample": clipped}[prediction]
    weight = min_snr if weighting == "min_snr" else np.ones(M)
    error = np.float64(np.float32(0.7)) * x_t + np.float64(np.float32(-0.2)) + 0.5 - target

    def mean(of_samples: np.ndarray) -> float:
        return float(np.mean(weight * of_samples.mean(axis=(1, 2, 3))))

    return mean(error**2), mean(2 * error * x_t), mean(2 * error)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_loss_and_gradient_are_the_papers(prediction: str, weighting: str) -> None:
    denoiser = Affine()
    loss = objective(prediction, weighting).loss(denoiser, *micro_batch(), TIMESTEPS, {"shift": torch.tensor(0.5)})
    loss.backward()
    assert loss.dtype == torch.float32
    assert [loss.item(), denoiser.a.grad.item(), denoiser.b.grad.item()] == pytest.approx(
        expected(prediction, weighting), rel=2e-5
    )


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
    x_0, noise = micro_batch()
    text = torch.randn(M, 7, 8).to(dtype)
    noise_scheduler = DDPMScheduler.from_config(NOISE_SCHEDULE)
    x_t = noise_scheduler.add_noise(x_0, noise, TIMESTEPS)
    target = noise if prediction == "epsilon" else noise_scheduler.get_velocity(x_0, noise, TIMESTEPS)
    plain = F.mse_loss(unet(x_t.to(dtype), TIMESTEPS, text, return_dict=False)[0].float(), target, reduction="mean")
    plain.backward()
    gradients = [parameter.grad for parameter in unet.parameters()]
    unet.zero_grad()

    ours = objective(prediction, "uniform", dtype).loss(unet, x_0, noise, TIMESTEPS, {"encoder_hidden_states": text})
    ours.backward()
    assert ours.item() == plain.item()
    assert all(torch.equal(p.grad, before) for p, before in zip(unet.parameters(), gradients, strict=True))


def test_min_snr_is_one_loss_of_x_0_whatever_is_predicted() -> None:
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
    losses = [objective(name, "min_snr").weights.double() * error.square().mean(1) for name, error in errors.items()]
    for other in losses[1:]:
        torch.testing.assert_close(other, losses[0], rtol=2e-4, atol=0)  # 1 − ᾱ_0 has 4 digits fewer in fp32
    weights = objective("sample", "min_snr").weights
    assert weights.max() == GAMMA
    assert (weights == GAMMA).sum() == ((bar / (1 - bar)) >= GAMMA).sum()


ZERO_TERMINAL_SNR = {"rescale_betas_zero_snr": True}


def test_epsilon_has_no_min_snr_weight_where_nothing_is_left_of_x_0() -> None:
    with pytest.raises(
        UserError, match=r"min_snr has no weight for prediction: epsilon at timestep 999, where .* is 0;"
    ):
        objective("epsilon", "min_snr", **ZERO_TERMINAL_SNR)


@pytest.mark.parametrize(
    ("prediction", "weighting"),
    [(p, w) for p in PREDICTIONS for w in WEIGHTINGS if (p, w) != ("epsilon", "min_snr")],
)
def test_zero_terminal_snr_gives_finite_losses_and_gradients(prediction: str, weighting: str) -> None:
    learnt = objective(prediction, weighting, **ZERO_TERMINAL_SNR)
    assert learnt.noise_scheduler.alphas_cumprod[-1] == 0
    assert learnt.weights is None or learnt.weights[-1] == 0
    denoiser = Affine()
    loss = learnt.loss(denoiser, *micro_batch(), torch.full((M,), T - 1), {"shift": torch.tensor(0.5)})
    loss.backward()
    assert loss.isfinite()
    assert denoiser.a.grad.isfinite()


def test_a_schedule_that_begins_without_noise_gives_finite_weights() -> None:
    betas = [0.0, *np.linspace(0.001, 0.02, T - 1)]
    for prediction in PREDICTIONS:
        assert objective(prediction, "min_snr", trained_betas=betas).weights.isfinite().all()


def test_a_uniform_number_is_spread_over_all_timesteps() -> None:
    picked = [pick_uniformly(u, 10) for u in np.arange(0, 1, 0.001)]
    assert np.bincount(picked).tolist() == [100] * 10
    assert pick_uniformly(0.0, T) == 0
    assert pick_uniformly(np.nextafter(1, 0), T) == T - 1
    timestep = objective("epsilon", "uniform").timestep
    assert isinstance(timestep, partial), "goes to worker processes, so it holds no scheduler and no weights"
    assert timestep(0.5) == T // 2


def test_every_choice_of_the_config_is_there() -> None:
    assert tuple(PREDICTIONS) == get_args(Prediction)
    assert tuple(WEIGHTINGS) == get_args(RunConfig.model_fields["loss_weighting"].annotation)
