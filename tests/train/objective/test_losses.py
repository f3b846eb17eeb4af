"""Every objective of every model family against the papers' formulas: the loss and the gradient of a real UNet."""

from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel

from configs.schema import LossWeighting, Prediction, RunConfig
from tests.tiny import make_pipeline, make_pipeline_2, make_pipeline_xl
from tests.train.objective.reference import compute_loss, list_alpha_bar
from train.models.schedulers import load_noise_scheduler
from train.objective import make_objective

M = 4
FAMILIES = {"SD 1": make_pipeline, "SD 2": make_pipeline_2, "SDXL": make_pipeline_xl}
EVERYTHING = {"zero_terminal_snr": True, "noise_offset": 0.1, "input_perturbation": 0.2, "loss": "huber"}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    **{f"{key} {value}": {key: value} for key, value in EVERYTHING.items()},
    "offset and perturbation": {key: EVERYTHING[key] for key in ("noise_offset", "input_perturbation")},
    "everything": EVERYTHING,
}
OF_EPSILON = [name for name, changes in OPTIONS.items() if "zero_terminal_snr" not in changes]


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return FAMILIES[request.param](tmp_path_factory.mktemp("families") / "model")


@pytest.fixture(scope="module")
def unet(folder: Path) -> UNet2DConditionModel:
    return UNet2DConditionModel.from_pretrained(folder, subfolder="unet").train()


def make_condition(unet: UNet2DConditionModel) -> dict[str, Any]:
    """What the UNet is told, of as many numbers as its config says."""
    config, draw = unet.config, torch.Generator().manual_seed(1)
    condition: dict[str, Any] = {"encoder_hidden_states": torch.randn(M, 7, config.cross_attention_dim, generator=draw)}
    if config.addition_embed_type == "text_time":
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        added = {"text_embeds": torch.randn(M, pooled, generator=draw), "time_ids": torch.full((M, 6), 32.0)}
        condition["added_cond_kwargs"] = added
    return condition


def make_draws() -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """x_0, and a micro-batch's draws at timesteps from the first to the last."""
    draw = np.random.default_rng(0)
    x_0, noise, perturbation = torch.from_numpy(draw.standard_normal((3, M, 4, 8, 8), dtype=np.float32))
    offset = torch.from_numpy(draw.standard_normal((M, 4, 1, 1), dtype=np.float32))
    timestep = torch.tensor([0, 250, 700, 999])
    return x_0, {"noise": noise, "perturbation": perturbation, "offset": offset, "timestep": timestep}


def take_gradient(unet: UNet2DConditionModel) -> torch.Tensor:
    gradient = torch.cat([parameter.grad.flatten() for parameter in unet.parameters()])
    unet.zero_grad()
    return gradient


@pytest.mark.parametrize("weighting", get_args(LossWeighting))
@pytest.mark.parametrize("prediction", get_args(Prediction))
def test_loss_and_gradient_are_the_papers(
    folder: Path, unet: UNet2DConditionModel, prediction: str, weighting: str
) -> None:
    """To 1e-6 relative in fp32, under every option of the noise and the loss."""
    condition, (x_0, draws) = make_condition(unet), make_draws()
    losses = set()
    for name in OF_EPSILON if prediction == "epsilon" else OPTIONS:
        objective = OPTIONS[name] | {"prediction": prediction, "loss_weighting": weighting}
        config = RunConfig(name="o", model="m", data={"images": "-"}, **objective)
        ours = make_objective(config, load_noise_scheduler(config, folder), torch.float32, torch.device("cpu"))
        loss = ours.loss(unet, x_0, draws, condition)
        loss.backward()
        gradient = take_gradient(unet)

        alpha_bar = list_alpha_bar(folder, bool(config.zero_terminal_snr))
        expected = compute_loss(
            lambda x_t: unet(x_t, draws["timestep"], **condition).sample, alpha_bar, objective, x_0, draws
        )
        expected.backward()
        wanted = take_gradient(unet)
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(expected.item(), rel=1e-6), name
        assert ((gradient - wanted).norm() / wanted.norm()).item() <= 1e-6, name
        losses.add(round(loss.item(), 6))
    assert len(losses) == (len(OF_EPSILON) if prediction == "epsilon" else len(OPTIONS)), "each option is a loss"
