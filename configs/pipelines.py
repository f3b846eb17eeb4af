"""The pipelines that can be trained, as far as planning knows them: one row per class, looked at without torch.

A pipeline is a folder as diffusers lays it out: `model_index.json` names its class, each part has a folder of its own.
What computes with it stands in `train.models`, under the same name.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from configs.errors import UserError
from configs.schema import Prediction, RunConfig


@dataclass(frozen=True)
class PipelineClass:
    """The parts of a pipeline, by the names of their folders."""

    family: str  # what people call it
    tag: str  # of its family on the hub
    trained: str  # the part that learns
    configs: Mapping[str, str]  # every part that must be there → its config file
    weights: Mapping[str, str]  # parts with weights → their file, or the same name with `.index.json` where sharded
    # Parts in one file of the original layout → what their tensors' names begin with there; see train/models.
    original: Mapping[str, str]
    optional: tuple[str, ...] = ()  # parts that an export takes along where the folder has them
    tells_sizes: bool = False  # whether the trained part is told of sizes, the crop and the pooled embedding

    @property
    def frozen(self) -> tuple[str, ...]:
        """All parts that training leaves as they are."""
        return (*(part for part in self.configs if part != self.trained), *self.optional)


PIPELINES = {
    "StableDiffusionPipeline": PipelineClass(  # their parts' own configs tell 1 and 2 apart
        family="Stable Diffusion 1 or 2",
        tag="stable-diffusion",
        trained="unet",
        configs={
            "unet": "config.json",
            "vae": "config.json",
            "text_encoder": "config.json",
            "tokenizer": "tokenizer_config.json",
            "scheduler": "scheduler_config.json",
        },
        weights={
            "unet": "diffusion_pytorch_model.safetensors",
            "vae": "diffusion_pytorch_model.safetensors",
            "text_encoder": "model.safetensors",
        },
        original={"unet": "model.diffusion_model.", "vae": "first_stage_model.", "text_encoder": "cond_stage_model."},
        optional=("feature_extractor", "safety_checker", "image_encoder"),
    ),
    "StableDiffusionXLPipeline": PipelineClass(
        family="Stable Diffusion XL",
        tag="stable-diffusion-xl",
        trained="unet",
        configs={
            "unet": "config.json",
            "vae": "config.json",
            "text_encoder": "config.json",
            "text_encoder_2": "config.json",
            "tokenizer": "tokenizer_config.json",
            "tokenizer_2": "tokenizer_config.json",
            "scheduler": "scheduler_config.json",
        },
        weights={
            "unet": "diffusion_pytorch_model.safetensors",
            "vae": "diffusion_pytorch_model.safetensors",
            "text_encoder": "model.safetensors",
            "text_encoder_2": "model.safetensors",
        },
        original={
            "unet": "model.diffusion_model.",
            "vae": "first_stage_model.",
            "text_encoder": "conditioner.embedders.0.",
            "text_encoder_2": "conditioner.embedders.1.",
        },
        optional=("feature_extractor", "image_encoder"),
        tells_sizes=True,
    ),
}


SIZE_NUMBERS = 6  # that a UNet is told of an image, each embedded by itself: two sizes and a corner
_GENERATIONS = {768: 1, 1024: 2}  # by the width of CLIP's states, and of OpenCLIP's


@dataclass(frozen=True)
class LatentShape:
    """One sample's latents."""

    channels: int
    height: int
    width: int

    @classmethod
    def of_vae(cls, vae: Mapping[str, Any], height: int, width: int) -> "LatentShape":
        """The latents of an image of so many pixels, by the VAE's config: it halves both sides once per block but the
        last, which makes 8 × 8 pixels one latent in Stable Diffusion."""
        downscale = 2 ** (len(vae["block_out_channels"]) - 1)
        return cls(vae["latent_channels"], height // downscale, width // downscale)


def name_family(class_name: str, unet: Mapping[str, Any]) -> str:
    """What people call the models of a class whose UNet has this config."""
    generation = _GENERATIONS.get(unet.get("cross_attention_dim", 0))
    if class_name == "StableDiffusionPipeline" and generation is not None:
        return f"Stable Diffusion {generation}"
    return PIPELINES[class_name].family


def find_weights_name(part: str) -> str:
    """What the weights of a pipeline's part are called, in every class that has such a part."""
    return next(pipeline.weights[part] for pipeline in PIPELINES.values() if part in pipeline.weights)


def check_told(config: RunConfig, class_name: str) -> None:
    """Raise UserError where the config drops what a pipeline of this class is not told."""
    if config.data.size_dropout and not PIPELINES[class_name].tells_sizes:
        raise UserError(
            f"data.size_dropout: {config.data.size_dropout:g} drops sizes and crops, of which a {class_name} is told "
            "nothing; leave it out"
        )


def check_objective(config: RunConfig, folder: Path) -> str:
    """What the model in `folder` is trained to predict: as the config says, or else its scheduler.

    Raises UserError where no such prediction is known, or where its loss has no weight at some timestep.
    """
    path = folder / "scheduler" / "scheduler_config.json"
    try:
        scheduler: dict[str, Any] = json.loads(path.read_text())
        prediction = config.prediction or scheduler.get("prediction_type", "epsilon")
        zero_terminal_snr = bool(scheduler.get("rescale_betas_zero_snr"))
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); fetch the model again") from None
    if prediction not in get_args(Prediction):
        raise UserError(f"{path}: predicts {prediction}; write prediction: {' or '.join(get_args(Prediction))}")
    if zero_terminal_snr and prediction == "epsilon" and config.loss_weighting == "min_snr":
        raise UserError(
            f"{path}: min_snr gives epsilon's loss no weight where the signal-to-noise ratio is 0, and "
            "rescale_betas_zero_snr makes it 0 at the last timestep; write prediction: v_prediction or sample, "
            "or loss_weighting: uniform"
        )
    return str(prediction)
