"""The UNet of a pipeline folder, which is trained."""

from pathlib import Path

import torch
from diffusers import UNet2DConditionModel

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
