"""What a model is to the rest of a rank: everything that differs between pipelines, and nothing that does not."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import torch
from diffusers import DDPMScheduler, DiffusionPipeline
from numpy.typing import NDArray

from configs.pipelines import LatentShape
from configs.schema import RunConfig
from train.data.images import Crop
from train.engines.base import WeightReader

Batch = dict[str, torch.Tensor]  # one micro-batch of m samples, on the device, as `train.data.stream.Stream` draws it


class DiffusionModel(Protocol):
    """One pipeline folder: a denoiser that is trained, and the frozen parts around it.

    `noise_scheduler` says how noise is added and, as its prediction_type, what the denoiser predicts of it.
    """

    denoiser: torch.nn.Module  # on torch's meta device until an engine takes it over
    weights: WeightReader  # what the denoiser begins with
    noise_scheduler: DDPMScheduler
    dtype: torch.dtype  # of the denoiser's inputs and of its condition

    @classmethod
    def load(cls, config: RunConfig, folder: Path, device: torch.device) -> Self:
        """The pipeline in `folder`, frozen parts on `device`. Raises UserError where a part is not whole."""
        ...

    @staticmethod
    def make_denoiser(folder: Path) -> Any:
        """The denoiser of the pipeline in `folder` as its config describes it, without weights (on torch's meta
        device): for an export, which has them from a checkpoint."""
        ...

    @property
    def read_caption(self) -> Callable[[str], dict[str, torch.Tensor]]:
        """A caption → what the text encoders read, such as tokens: all that `states` are made of. It goes to worker
        processes, so it holds no weights."""
        ...

    @property
    def read_crop(self) -> Callable[[Crop], dict[str, torch.Tensor]]:
        """What a sample shows of its image → what `condition` needs of it, which is never cached; nothing for a
        denoiser that is told nothing of it. It goes to worker processes, too."""
        ...

    def latent_shape(self, height: int, width: int) -> LatentShape:
        """The latents of one image of so many pixels."""
        ...

    def moments(self, pixels: torch.Tensor) -> torch.Tensor:
        """Of uint8 images (m, 3, H, W) what is cached in their place, from which every pass draws latents anew: mean
        and logarithm of the variance, (m, 2·C, h, w)."""
        ...

    def latents(self, batch: Batch) -> torch.Tensor:
        """x_0, (m, C, h, w), fp32: the latents of `moments` or `pixels`, drawn with the standard normal `posterior`."""
        ...

    def states(self, batch: Batch) -> torch.Tensor:
        """Of captions as `read_caption` reads them what is cached in their place, one tensor, (m, …): all that the text
        encoders make of them."""
        ...

    def condition(self, batch: Batch) -> dict[str, Any]:
        """What the denoiser is told beside x_t and t, by `states` or by captions as they are read, and by the crops, as
        keyword arguments of its forward pass; tensors of real numbers in `dtype`."""
        ...

    def describe_encoder(self, kind: str) -> dict[str, str]:
        """All that decides what `moments` or `states` are, beside their inputs: the facts of a `Family` of encodings.
        Raises OSError."""
        ...

    def spare_encoder(self, kind: str) -> None:
        """Free what makes `moments` or `states`. Whoever needs it all the same has it loaded again, and is told."""
        ...

    def decode(self, latents: torch.Tensor) -> NDArray[np.uint8]:
        """Images (m, H, W, 3) of latents (m, C, h, w)."""
        ...

    def embed_prompt(self, prompt: str) -> dict[str, torch.Tensor]:
        """What `pipeline` is told in the place of `prompt` and of an empty negative prompt: what training would have of
        them, which has more tokens than a pipeline reads by itself. As keyword arguments."""
        ...

    def pipeline(self) -> DiffusionPipeline:
        """Samples with the denoiser as it is now, by the folder's own sampler."""
        ...
