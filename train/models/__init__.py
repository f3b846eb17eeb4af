"""The models that can be trained, by the pipeline class that a folder's model_index.json names.

A new one is a file beside these, a line here and a row in `configs.pipelines`.
"""

from pathlib import Path

import torch

from configs.model_folder import check_model_folder
from configs.schema import RunConfig
from train.models.base import DiffusionModel
from train.models.stable_diffusion import StableDiffusion
from train.models.stable_diffusion_xl import StableDiffusionXL

MODELS: dict[str, type[DiffusionModel]] = {
    "StableDiffusionPipeline": StableDiffusion,
    "StableDiffusionXLPipeline": StableDiffusionXL,
}


def load_model(config: RunConfig, folder: Path, device: torch.device) -> DiffusionModel:
    """The pipeline folder that `config.model` was resolved to before the run began. Raises UserError where it is not
    whole, or not one we train."""
    model = MODELS[check_model_folder(folder, config.variant)].load(config, folder, device)
    if config.lora is not None:
        from train.models.lora import adapt_model  # peft takes seconds to import

        adapt_model(model, config)
    return model
