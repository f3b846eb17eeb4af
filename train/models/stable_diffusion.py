"""The Stable Diffusion a run starts from, loaded by the libraries' own from_pretrained: only the UNet is trained."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from safetensors import SafetensorError
from transformers import CLIPTextModel, CLIPTokenizer

from configs.errors import UserError
from configs.model_folder import check_model_folder
from configs.schema import RunConfig
from train.data.stream import LatentShape

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class StableDiffusion:
    """The parts of a pipeline folder. The UNet is fp32 until DeepSpeed takes it over; the frozen parts are `dtype`."""

    folder: Path
    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    schedule: DDPMScheduler
    dtype: torch.dtype

    @torch.no_grad()
    def encode_images(self, pixels: torch.Tensor, posterior: torch.Tensor) -> torch.Tensor:
        """Latents (m, C, h, h), fp32: one draw of the VAE's posterior, mean + std × `posterior`, scaled."""
        moments = self.vae.encode(pixels.to(self.vae.dtype)).latent_dist
        drawn = moments.mean.float() + moments.std.float() * posterior
        shift = self.vae.config.shift_factor or 0.0
        return (drawn - shift) * self.vae.config.scaling_factor

    @torch.no_grad()
    def decode_latents(self, latents: torch.Tensor) -> np.ndarray:
        """Pictures (m, R, R, 3), uint8, of scaled latents (m, C, h, h)."""
        shift = self.vae.config.shift_factor or 0.0
        unscaled = latents.to(self.vae.dtype) / self.vae.config.scaling_factor + shift
        pixels = self.vae.decode(unscaled).sample.float()
        return ((pixels / 2 + 0.5).clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()

    @torch.no_grad()
    def encode_text(self, tokens: torch.Tensor) -> torch.Tensor:
        """The text encoder's last hidden state, (m, 77, width), in the run's dtype."""
        return self.text_encoder(tokens)[0].to(self.dtype)

    def latent_shape(self, resolution: int) -> LatentShape:
        down = 2 ** (len(self.vae.config.block_out_channels) - 1)
        return LatentShape(
            self.vae.config.latent_channels, resolution // down, self.schedule.config.num_train_timesteps
        )


def load_model(config: RunConfig, folder: Path, device: torch.device) -> StableDiffusion:
    """Load the pipeline folder that `config.model` was resolved to before the run began.

    dtypes are always passed: left to themselves, fp16 files give an fp16 text encoder and an fp32 UNet.
    """
    check_model_folder(folder)
    dtype = DTYPES[config.precision]
    schedule = DDPMScheduler.from_pretrained(folder, subfolder="scheduler")
    if config.prediction is not None:
        schedule.register_to_config(prediction_type=config.prediction)
    if schedule.config.prediction_type not in ("epsilon", "v_prediction"):
        raise UserError(
            f"{folder}: predicts {schedule.config.prediction_type}; write prediction: epsilon or v_prediction"
        )
    vae = _load_part(AutoencoderKL, folder / "vae", torch_dtype=torch.float32)
    if config.precision == "bf16" or (config.precision == "fp16" and not vae.config.force_upcast):
        vae.to(dtype)
    text_encoder = _load_part(CLIPTextModel, folder / "text_encoder", dtype=dtype, ignore_mismatched_sizes=True)
    unet = _load_part(UNet2DConditionModel, folder / "unet", torch_dtype=torch.float32)
    if config.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    return StableDiffusion(
        folder=folder,
        unet=unet.train(),
        vae=_frozen(vae, device),
        text_encoder=_frozen(text_encoder, device),
        tokenizer=CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer"),
        schedule=schedule,
        dtype=dtype,
    )


def _load_part(kind: Any, path: Path, **options: Any) -> Any:
    """The model in `path`, whole and finite, from safetensors only.

    Raises UserError for every tensor that is missing, has another shape than its config says, or is not finite: the
    libraries put random numbers in the place of the first two.
    """
    cure = "fetch the model again"
    for file in path.glob("*.safetensors"):
        with open(file, "rb") as opened:
            opened.read(1)  # the machine's trouble raises here; the libraries hide what it was
    try:
        part, found = kind.from_pretrained(path, use_safetensors=True, output_loading_info=True, **options)
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"{path}: does not load ({' '.join(str(error).split())}); {cure}") from error
    missing = sorted(found["missing_keys"])
    if missing:
        raise UserError(f"{path}: its weights lack {_listed(missing)}; {cure}")
    other_shapes = sorted(f"{name} ({tuple(has)}, not {tuple(wants)})" for name, has, wants in found["mismatched_keys"])
    if other_shapes:
        raise UserError(f"{path}: has tensors of another shape than its config says: {_listed(other_shapes)}; {cure}")
    spoiled = [name for name, tensor in part.state_dict().items() if not torch.isfinite(tensor).all()]
    if spoiled:
        raise UserError(f"{path}: not finite are {_listed(spoiled)}; {cure}")
    return part


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more


def _frozen(module: Any, device: torch.device) -> Any:
    return module.requires_grad_(False).eval().to(device)
