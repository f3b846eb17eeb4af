"""The program of test_reference: five steps of our trainer, and the same five in plain PyTorch, side by side.

Its last argument is a file, into which it writes the relative difference of each loss and each tensor, as JSON.

The reference shares nothing with the trainer but the drawn samples: no DeepSpeed, no train.objective, its own AdamW
written from the paper, its own learning rate, noise schedule and clipping.
"""

import json
import sys
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from transformers import CLIPTextModel

from configs.schema import RunConfig
from configs.solve.batch import BatchPlan, Shape
from configs.solve.learning_rate import compute_learning_rate
from store.dataset.build import build_index
from store.dataset.sources.image_folder import ImageFolder
from tests.engines import build_engine
from tests.gather import gather
from train import process_group
from train.data.stream import Stream, micro_batches
from train.models import load_model
from train.objective import make_objective
from train.step import Trainer

STEPS, MICRO, ACCUMULATION = 5, 3, 2
LR, WARMUP, CLIP, BETA1, BETA2, EPS, DECAY = 1e-3, 2, 0.5, 0.9, 0.999, 1e-8, 1e-2
GAMMA = 5  # min-SNR's, if nothing else is said


def reference(folder: str, samples: list[dict], weighting: str) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses of each micro-batch, and the weights after five steps, with one process and no engine."""
    unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet").train()
    vae = AutoencoderKL.from_pretrained(folder, subfolder="vae").eval()
    text_encoder = CLIPTextModel.from_pretrained(folder, subfolder="text_encoder").eval()
    settings = DDPMScheduler.from_pretrained(folder, subfolder="scheduler").config
    roots = torch.linspace(settings.beta_start**0.5, settings.beta_end**0.5, settings.num_train_timesteps)
    alpha_bar = torch.cumprod(1 - roots**2, dim=0)
    weights = dict(unet.named_parameters())
    first = {name: torch.zeros_like(w) for name, w in weights.items()}
    second = {name: torch.zeros_like(w) for name, w in weights.items()}
    losses = []
    for k in range(1, STEPS + 1):
        for batch in samples[(k - 1) * ACCUMULATION : k * ACCUMULATION]:
            with torch.no_grad():
                moments = vae.encode(batch["pixels"] / torch.tensor(127.5) - 1).latent_dist.parameters
                mean, log_variance = moments.chunk(2, dim=1)
                sigma = torch.exp(0.5 * log_variance.clamp(-30, 20))
                x = (mean + sigma * batch["posterior"]) * vae.config.scaling_factor
                text = text_encoder(batch["tokens"].flatten(0, 1)).last_hidden_state
            a = alpha_bar[batch["timestep"]].sqrt()[:, None, None, None]
            s = (1 - alpha_bar[batch["timestep"]]).sqrt()[:, None, None, None]
            predicted = unet(a * x + s * batch["noise"], batch["timestep"], text).sample
            targets = {"epsilon": batch["noise"], "v_prediction": a * batch["noise"] - s * x, "sample": x}
            snr = (a / s) ** 2
            parts_of_x_0 = {"epsilon": snr, "v_prediction": snr + 1, "sample": torch.ones_like(snr)}
            weight = snr.clamp(max=GAMMA) / parts_of_x_0[settings.prediction_type] if weighting == "min_snr" else 1
            loss = (weight * (predicted - targets[settings.prediction_type]) ** 2).mean()
            (loss / ACCUMULATION).backward()
            losses.append(loss.item())
        norm = torch.sqrt(sum((w.grad**2).sum() for w in weights.values()))
        scale = min(1.0, CLIP / (norm.item() + 1e-6))
        rate = LR * min(1.0, k / WARMUP)
        with torch.no_grad():
            for name, w in weights.items():
                g = w.grad * scale
                first[name] = BETA1 * first[name] + (1 - BETA1) * g
                second[name] = BETA2 * second[name] + (1 - BETA2) * g * g
                w.mul_(1 - rate * DECAY)
                corrected = first[name] / (1 - BETA1**k)
                w.sub_(rate * corrected / ((second[name] / (1 - BETA2**k)).sqrt() + EPS))
                w.grad = None
    return losses, {name: w.detach() for name, w in weights.items()}


def main(folder: str, images: str, zero: str, weighting: str, answer: str) -> None:
    config = RunConfig(
        name="reference",
        model=folder,
        data={"images": images, "resolution": 32, "workers": 0},
        batch=MICRO * ACCUMULATION,
        micro_batch=MICRO,
        steps=STEPS,
        lr=LR,
        warmup_steps=WARMUP,
        grad_clip=CLIP,
        optimizer={"betas": [BETA1, BETA2], "eps": EPS, "weight_decay": DECAY},
        zero=int(zero),
        loss_weighting=weighting,
        precision="fp32",
    )
    plan = BatchPlan(Shape(1, 1), MICRO, ACCUMULATION)
    world = process_group.init_process_group(1)
    model = load_model(config, Path(folder), world.device)
    objective = make_objective(config, model.noise_scheduler, model.dtype, world.device)
    stream = Stream(
        config,
        build_index([ImageFolder(Path(images))], None).index,
        model,
        objective.timestep,
    )
    drawn = list(micro_batches(stream, plan, 0, range(1, STEPS + 1), pin_memory=False))
    wanted_losses, wanted = reference(folder, drawn, weighting)

    engine = build_engine(model.denoiser, model.weights, config, plan, world)
    trainer = Trainer(model, objective, engine, None, world.device)
    losses, original = [], trainer.micro_loss

    def watched(micro_batch):
        losses.append(original(micro_batch))
        return losses[-1]

    trainer.micro_loss = watched
    for k in range(1, STEPS + 1):
        mine = iter(drawn[(k - 1) * ACCUMULATION : k * ACCUMULATION])
        trainer.step(k, compute_learning_rate(config, k, STEPS), mine, lambda: None)
    trained = gather(world, engine.owned, [engine.weights(fragment) for fragment in engine.owned])

    assert len(losses) == len(wanted_losses) == STEPS * ACCUMULATION
    assert trained.keys() == wanted.keys()
    differences = {
        "losses": [abs(a.item() - b) / b for a, b in zip(losses, wanted_losses, strict=True)],
        "tensors": {name: ((trained[name] - w.flatten()).norm() / w.norm()).item() for name, w in wanted.items()},
    }
    Path(answer).write_text(json.dumps(differences))


if __name__ == "__main__":
    main(*sys.argv[1:])
