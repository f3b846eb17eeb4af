"""The program of test_examples: ten steps of our trainer, and the same ten as diffusers' text-to-image examples make
them, for each family of models: of the whole UNet, and of adapters.

Arguments: the image folder, a file for the relative differences of the losses as JSON, and pipelines' folders.

The loops are written the way examples/text_to_image/train_text_to_image.py, train_text_to_image_sdxl.py and their LoRA
siblings work: adapters on the UNet by add_adapter, which begin as ours do; the noise scheduler's own add_noise and
get_velocity, the mean squared error, torch's AdamW and clipping. They read captions and sizes themselves. Fed in are
what the examples draw: which image comes when, its pixels, whether it is mirrored, its caption, the posterior, the
noise and the timesteps. Where an example is known to be wrong, the pipeline decides: the heights stand before the
widths, a mirrored image is mirrored before it is cropped, and an empty caption is what the pipeline draws with for an
empty negative prompt.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, DiffusionPipeline, StableDiffusionXLPipeline
from peft import LoraConfig as PeftConfig
from PIL import Image

from configs.pipelines import LatentShape
from configs.schema import LoraConfig, RunConfig
from configs.solve.batch import BatchPlan, Shape
from store.dataset.build import build_index
from store.dataset.index import Index
from store.dataset.sources.image_folder import ImageFolder
from tests.engines import SETTINGS, build_engine
from train import process_group
from train.data.images import Crop
from train.data.stream import Stream
from train.engines.base import WeightReader
from train.models import load_model
from train.models.base import DiffusionModel
from train.objective import make_objective
from train.step import Trainer

STEPS, BATCH, SIDE = 10, 4, 32
ENGINES = ("zero2", "reshard", "zero1")  # for one family after the other
ADAPTERS = ({"rank": 4, "alpha": 6}, {"rank": 4, "alpha": 4, "dora": True}, {"rank": 4, "alpha": 2})  # likewise


@dataclass
class Sample:
    """What the examples' dataset answers, and what they draw for it."""

    image: Path
    caption: str
    drawn: dict[str, torch.Tensor]


@dataclass
class Noting:
    """A model that notes down the captions that it reads."""

    model: DiffusionModel
    captions: list[str]

    def read_caption(self, caption: str) -> dict[str, torch.Tensor]:
        self.captions.append(caption)
        return self.model.read_caption(caption)

    def read_crop(self, crop: Crop) -> dict[str, torch.Tensor]:
        return self.model.read_crop(crop)

    def latent_shape(self, height: int, width: int) -> LatentShape:
        return self.model.latent_shape(height, width)


def encode_prompts(pipeline: Any, captions: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Of Stable Diffusion XL: hidden states of both text encoders, and the pooled embedding of the second."""
    hidden = []
    for tokenizer, text_encoder in (
        (pipeline.tokenizer, pipeline.text_encoder),
        (pipeline.tokenizer_2, pipeline.text_encoder_2),
    ):
        length = tokenizer.model_max_length
        ids = tokenizer(captions, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        answer = text_encoder(ids.input_ids, output_hidden_states=True, return_dict=False)
        pooled = answer[0]
        hidden.append(answer[-1][-2])
    states = torch.concat(hidden, dim=-1)
    for row, caption in enumerate(captions):
        if not caption and pipeline.config.force_zeros_for_empty_prompt:
            states[row], pooled[row] = 0, 0
    return states, pooled


def compute_time_ids(image: Path) -> torch.Tensor:
    """Of a centre crop, as torchvision's Resize and CenterCrop make it, which is the same whether it is mirrored."""
    width, height = Image.open(image).size
    shorter, longer = sorted((width, height))
    resized_longer = int(SIDE * longer / shorter)
    resized = (SIDE, resized_longer) if height <= width else (resized_longer, SIDE)
    corner = tuple(max(0, round((side - SIDE) / 2)) for side in resized)
    return torch.tensor([height, width, *corner, SIDE, SIDE])


def condition(pipeline: Any, samples: list[Sample]) -> dict[str, Any]:
    captions = [sample.caption for sample in samples]
    if isinstance(pipeline, StableDiffusionXLPipeline):
        states, pooled = encode_prompts(pipeline, captions)
        time_ids = torch.stack([compute_time_ids(sample.image) for sample in samples])
        return {"encoder_hidden_states": states, "added_cond_kwargs": {"text_embeds": pooled, "time_ids": time_ids}}
    length = pipeline.tokenizer.model_max_length
    ids = pipeline.tokenizer(captions, max_length=length, padding="max_length", truncation=True, return_tensors="pt")
    return {"encoder_hidden_states": pipeline.text_encoder(ids.input_ids, return_dict=False)[0]}


def put_adapters(unet: Any, lora: LoraConfig, begin: WeightReader) -> None:
    """As the LoRA examples do; with the values that ours begin with."""
    unet.requires_grad_(False)
    targets = ["to_k", "to_q", "to_v", "to_out.0"]
    unet.add_adapter(PeftConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=targets, use_dora=lora.dora))
    with torch.no_grad():
        for name, parameter in unet.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(begin.read(name, 0, parameter.numel()).view(parameter.shape))


def train_as_the_examples(folder: Path, samples: list[Sample], config: RunConfig, begin: WeightReader) -> list[float]:
    """The loss of each step."""
    pipeline = DiffusionPipeline.from_pretrained(folder)
    noise_scheduler = DDPMScheduler.from_pretrained(folder, subfolder="scheduler")
    unet, vae = pipeline.unet, pipeline.vae
    if config.lora is not None:
        put_adapters(unet, config.lora, begin)
    trained = [parameter for parameter in unet.train().parameters() if parameter.requires_grad]
    o = config.optimizer
    optimizer = torch.optim.AdamW(trained, config.lr, o.betas, o.eps, o.weight_decay)
    losses = []
    for step in range(STEPS):
        batch = samples[step * BATCH : (step + 1) * BATCH]
        fed = {key: torch.stack([sample.drawn[key] for sample in batch]) for key in batch[0].drawn}
        noise, timesteps = fed["noise"], fed["timestep"]
        with torch.no_grad():
            posterior = vae.encode(fed["pixels"] / 127.5 - 1).latent_dist
            latents = (posterior.mean + posterior.std * fed["posterior"]) * vae.config.scaling_factor
            told = condition(pipeline, batch)
        noisy_latents = noise_scheduler.add_noise(latents, noise, timesteps)
        if noise_scheduler.config.prediction_type == "epsilon":
            target = noise
        else:
            target = noise_scheduler.get_velocity(latents, noise, timesteps)
        predicted = unet(noisy_latents, timesteps, **told, return_dict=False)[0]
        loss = F.mse_loss(predicted.float(), target.float(), reduction="mean")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, config.grad_clip)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def draw_samples(stream: Stream, index: Index, captions: list[str]) -> list[Sample]:
    """Those of all steps; `captions` is where the stream's captions are noted down."""
    samples = []
    for position in range(STEPS * BATCH):
        drawn = stream.sample(position)
        image = index.path_of(next(sample for sample in index if sample.name == stream.image_at(position)))
        kept = {key: drawn[key] for key in ("pixels", "posterior", "noise", "timestep")}
        samples.append(Sample(image, captions[-1], kept))
    return samples


def compare(folder: Path, images: Path, engine_name: str, lora: dict[str, object] | None, world: Any) -> list[float]:
    config = RunConfig(
        name="examples",
        model=str(folder),
        data={"images": str(images), "resolution": SIDE, "flip": True, "caption_dropout": 0.3, "workers": 0},
        batch=BATCH,
        micro_batch=BATCH,
        steps=STEPS,
        lr=1e-3 if lora is None else 1e-2,
        precision="fp32",
        lora=lora,
        **SETTINGS[engine_name],
    )
    plan = BatchPlan(Shape(1, 1), BATCH, 1)
    model = load_model(config, folder, world.device)
    objective = make_objective(config, model.noise_scheduler, model.dtype, world.device)
    index = build_index([ImageFolder(images)], None).index
    captions: list[str] = []

    stream = Stream(config, index, Noting(model, captions), objective.timestep)
    samples = draw_samples(stream, index, captions)
    assert "" in [sample.caption for sample in samples]
    expected = train_as_the_examples(folder, samples, config, model.weights)
    engine = build_engine(model.denoiser, model.weights, config, plan, world)
    trainer = Trainer(model, objective, engine, None, world.device)
    drawn = (stream[range(step * BATCH, (step + 1) * BATCH)] for step in range(STEPS))
    losses = [trainer.step(step, config.lr, drawn, lambda: None).loss.item() for step in range(1, STEPS + 1)]
    assert losses[-1] != losses[0]
    return [abs(ours - theirs) / theirs for ours, theirs in zip(losses, expected, strict=True)]


def main(images: str, answer: str, *folders: str) -> None:
    world = process_group.init_process_group(1)
    differences = {}
    for folder, engine, adapters in zip(folders, ENGINES, ADAPTERS, strict=True):
        for lora in (None, adapters):
            found = compare(Path(folder), Path(images), engine, lora, world)
            differences[f"{folder}: {'UNet' if lora is None else 'adapters'}"] = found
    Path(answer).write_text(json.dumps(differences))


if __name__ == "__main__":
    main(*sys.argv[1:])
