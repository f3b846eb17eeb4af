"""The program of test_lora: ten steps of our trainer on adapters, and the same ten in a plain loop, side by side.

Arguments: the images, cases as JSON, [[pipeline folder, the config's `lora`, ZeRO stage], …], and a file for the
answer: of each case the relative difference of each loss and each adapter, as JSON.

The loop is written the way diffusers' text-to-image LoRA example works: the whole pipeline's parts frozen, adapters put
on the UNet with `add_adapter`, torch's AdamW on what is trained, its clipping. It shares with ours the drawn samples
and what the adapters begin with.
"""

import json
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from peft import LoraConfig
from transformers import CLIPTextModel

from configs.schema import RunConfig
from configs.solve.batch import BatchPlan, Shape
from tests.engines import build_engine
from tests.gather import gather
from tests.indexes import index_images
from train import process_group
from train.data.stream import Stream, micro_batches
from train.engines.base import WEIGHTS, WeightReader
from train.models import load_model
from train.objective import make_objective
from train.step import Trainer

STEPS, MICRO, ACCUMULATION = 10, 3, 2
LR, CLIP, BETAS, EPS, DECAY = 1e-2, 0.5, (0.9, 0.999), 1e-8, 1e-2


def train_plainly(
    folder: str, lora: dict, samples: list[dict], begin: WeightReader
) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses of each micro-batch, and the adapters after the last step."""
    noise_scheduler = DDPMScheduler.from_pretrained(folder, subfolder="scheduler")
    vae = AutoencoderKL.from_pretrained(folder, subfolder="vae").requires_grad_(False)
    text_encoder = CLIPTextModel.from_pretrained(folder, subfolder="text_encoder").requires_grad_(False)
    unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet").requires_grad_(False)
    unet.add_adapter(
        LoraConfig(
            r=lora["rank"],
            lora_alpha=lora["alpha"],
            target_modules=["to_k", "to_q", "to_v", "to_out.0"],
            use_dora=lora.get("dora", False),
        )
    )
    adapters = {name: parameter for name, parameter in unet.named_parameters() if parameter.requires_grad}
    with torch.no_grad():
        for name, parameter in adapters.items():
            parameter.copy_(begin.read(name, 0, parameter.numel()).view(parameter.shape))
    optimizer = torch.optim.AdamW(adapters.values(), lr=LR, betas=BETAS, weight_decay=DECAY, eps=EPS)
    unet.train()
    losses = []
    for first in range(0, STEPS * ACCUMULATION, ACCUMULATION):
        for batch in samples[first : first + ACCUMULATION]:
            posterior = vae.encode(batch["pixels"] / 127.5 - 1).latent_dist
            latents = (posterior.mean + posterior.std * batch["posterior"]) * vae.config.scaling_factor
            noise, timesteps = batch["noise"], batch["timestep"]
            noisy_latents = noise_scheduler.add_noise(latents, noise, timesteps)
            encoder_hidden_states = text_encoder(batch["tokens"].flatten(0, 1))[0]
            if noise_scheduler.config.prediction_type == "epsilon":
                target = noise
            else:
                target = noise_scheduler.get_velocity(latents, noise, timesteps)
            model_pred = unet(noisy_latents, timesteps, encoder_hidden_states).sample
            loss = F.mse_loss(model_pred.float(), target.float(), reduction="mean")
            (loss / ACCUMULATION).backward()
            losses.append(loss.item())
        torch.nn.utils.clip_grad_norm_(adapters.values(), CLIP)
        optimizer.step()
        optimizer.zero_grad()
    return losses, {name: parameter.detach() for name, parameter in adapters.items()}


def compare(world: process_group.World, images: str, folder: str, lora: dict, zero: int) -> dict:
    """Relative differences of one case."""
    config = RunConfig(
        name="lora",
        model=folder,
        data={"images": images, "resolution": 32, "workers": 0},
        batch=MICRO * ACCUMULATION,
        micro_batch=MICRO,
        steps=STEPS,
        lr=LR,
        grad_clip=CLIP,
        optimizer={"betas": BETAS, "eps": EPS, "weight_decay": DECAY},
        zero=zero,
        precision="fp32",
        lora=lora,
    )
    plan = BatchPlan(Shape(1, 1), MICRO, ACCUMULATION)
    model = load_model(config, Path(folder), world.device)
    objective = make_objective(config, model.noise_scheduler, model.dtype, world.device)
    stream = Stream(config, index_images(config.data), model.inputs, model.latent_shape, objective.timestep)
    drawn = list(micro_batches(stream, plan, 0, range(1, STEPS + 1), pin_memory=False))
    wanted_losses, wanted = train_plainly(folder, lora, drawn, model.weights)

    engine = build_engine(model.denoiser, model.weights, config, plan, world)
    trainer = Trainer(model, objective, engine, None, world.device)
    losses, original = [], trainer.micro_loss

    def watched(micro_batch):
        losses.append(original(micro_batch))
        return losses[-1]

    trainer.micro_loss = watched
    batches = iter(drawn)
    for step in range(1, STEPS + 1):
        trainer.step(step, LR, batches, lambda: None)
    trained = gather(world, engine.owned, [engine.tensor(fragment, WEIGHTS) for fragment in engine.owned])
    assert trained.keys() == wanted.keys()
    return {
        "losses": [abs(a.item() - b) / b for a, b in zip(losses, wanted_losses, strict=True)],
        "tensors": {name: ((trained[name] - w.flatten()).norm() / w.norm()).item() for name, w in wanted.items()},
    }


def main(images: str, cases: str, answer: str) -> None:
    world = process_group.init_process_group(1)
    Path(answer).write_text(json.dumps([compare(world, images, *case) for case in json.loads(cases)]))


if __name__ == "__main__":
    main(*sys.argv[1:])
