"""Sample pictures while training: the ranks share the prompts, each prompt has its own seed. Watches only."""

import re

import numpy as np
import torch

from configs.schema import RunConfig
from store.run.run_dir import RunDir
from train.models.base import DiffusionModel
from train.process_group import World
from train.reporting.metrics import MetricsWriter


class SampleImages:
    """Draws the prompts with the weights as they are trained (not the average), under any ZeRO stage.

    Under ZeRO 3 a forward pass is a collective, so every rank draws equally often, where need be a prompt again.
    """

    def __init__(self, config: RunConfig, model: DiffusionModel, world: World):
        assert config.pictures is not None
        self.pictures, self.side, self.world = config.pictures, config.data.resolution, world
        self.model, self.pipeline = model, model.pipeline()
        self.pipeline.set_progress_bar_config(disable=True)

    def draw(self, run: RunDir, step: int, sinks: MetricsWriter | None) -> None:
        """Draw all prompts; rank 0 (the one with `sinks`) writes them as PNGs and to TensorBoard."""
        prompts = self.pictures.prompts
        rounds = -(-len(prompts) // self.world.size)
        mine = [(self.world.rank + i * self.world.size) % len(prompts) for i in range(rounds)]
        self.model.denoiser.eval()
        drawn = {index: self._draw(prompts[index], seed=index) for index in mine}
        self.model.denoiser.train()
        everything = {index: image for part in self.world.gather(drawn) for index, image in part.items()}
        if sinks is None:
            return
        folder = run.pictures_at(step)
        for index, pixels in sorted(everything.items()):
            name, tag = f"{index:02d}-{slugify(prompts[index])}.png", f"pictures/{index:02d} {prompts[index][:60]}"
            sinks.picture(step, tag, folder / name, pixels)

    @torch.no_grad()
    def _draw(self, prompt: str, seed: int) -> np.ndarray:
        """One picture, uint8, (side, side, 3); its noise is the seed's, whoever draws it."""
        latents = self.pipeline(
            prompt,
            height=self.side,
            width=self.side,
            num_inference_steps=self.pictures.timesteps,
            guidance_scale=self.pictures.guidance,
            generator=torch.Generator().manual_seed(seed),
            output_type="latent",
        ).images
        return self.model.decode(latents)[0]


def slugify(prompt: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:60] or "picture"
