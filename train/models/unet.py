"""The UNet of a pipeline folder, which is trained, and the noise that is added to what it sees."""

from pathlib import Path

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel

from configs.pipelines import check_objective
from configs.schema import RunConfig
from train.models.parts import check_trainable


def make_empty_unet(folder: Path) -> UNet2DConditionModel:
    """As its config describes it, without weights (on torch's meta device)."""
    with torch.device("meta"):
        unet: UNet2DConditionModel = UNet2DConditionModel.from_config(
            UNet2DConditionModel.load_config(folder, subfolder="unet")
        )
    return unet


def prepare_unet(config: RunConfig, folder: Path) -> UNet2DConditionModel:
    """The same, to be trained. Raises UserError where it cannot be."""
    unet = make_empty_unet(folder)
    check_trainable(folder / "unet", unet)
    if config.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    return unet.train()


def load_noise_scheduler(config: RunConfig, folder: Path) -> DDPMScheduler:
    """The schedule of the folder's own sampler, and what is predicted. Raises UserError where no such prediction is
    known."""
    noise_scheduler = DDPMScheduler.from_pretrained(folder, subfolder="scheduler")
    noise_scheduler.register_to_config(prediction_type=check_objective(config, folder))
    return noise_scheduler
