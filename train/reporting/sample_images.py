"""Sample images while training (diffusers: validation images): the ranks share the prompts, each has its own seed."""

import re
from functools import cached_property

import numpy as np
import torch
from diffusers import DiffusionPipeline

from train.context import RankContext
from train.models.base import DiffusionModel
from train.reporting.metrics_writer import MetricsWriter
from train.step_totals import StepTotals

TITLE = 60  # characters of a prompt that name its images


class SampleImages:
    """Draws the prompts with the base model, every `pictures.every_steps` and after the last step, with the weights as
    they are trained (not the average). `writer` is rank 0's alone.

    Where weights are sharded (ZeRO 3, FSDP2) a forward pass is a collective, so every rank draws equally often, where
    need be a prompt again.
    """

    def __init__(self, context: RankContext, model: DiffusionModel, writer: MetricsWriter | None):
        assert context.config.pictures is not None
        self.context, self.world, self.writer = context, context.world, writer
        self.pictures, self.side = context.config.pictures, context.config.data.resolution
        self.model = model

    @cached_property
    def pipeline(self) -> DiffusionPipeline:
        """Made with the first pictures, as it loads what the cache may spare until then."""
        pipeline = self.model.pipeline()
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def due(self, step: int) -> bool:
        return step % self.pictures.every_steps == 0 or step == self.context.length.steps

    def report(self, step: int, totals: StepTotals) -> None:
        """As PNGs and in TensorBoard."""
        self.context.progress.set_activity("drawing sample pictures")
        prompts = self.pictures.prompts
        rounds = -(-len(prompts) // self.world.size)
        mine = [(self.world.rank + i * self.world.size) % len(prompts) for i in range(rounds)]
        self.model.denoiser.eval()
        drawn = {index: self._draw(prompts[index], seed=index) for index in mine}
        self.model.denoiser.train()
        images: dict[int, np.ndarray] = {}
        for part in self.world.gather(drawn):
            images |= part
        if self.writer is None:
            return
        folder = self.context.run.pictures_path_at(step)
        for index, pixels in sorted(images.items()):
            tag = f"pictures/{index:02d} {prompts[index][:TITLE]}"  # TensorBoard's title of it
            self.writer.write_image(step, tag, folder / f"{index:02d}-{slugify(prompts[index])}.png", pixels)

    @torch.no_grad()
    def _draw(self, prompt: str, seed: int) -> np.ndarray:
        """One picture, uint8, (side, side, 3); its noise is the seed's, whoever draws it."""
        with torch.compiler.set_stance("force_eager"):  # these shapes come seldom: not worth graphs of their own
            latents = self.pipeline(
                **self.model.embed_prompt(prompt),
                height=self.side,
                width=self.side,
                num_inference_steps=self.pictures.timesteps,
                guidance_scale=self.pictures.guidance,
                generator=torch.Generator().manual_seed(seed),
                output_type="latent",
            ).images
        return self.model.decode(latents)[0]


def slugify(prompt: str) -> str:
    """`prompt` as the name of a file."""
    return re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:TITLE] or "picture"
