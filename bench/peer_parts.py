"""Where a step of bench/peer.py goes on a CPU, part by part: `python -m bench.peer_parts`, about 1 minute.

Least CPU milliseconds of several calls on one thread, so that a busy machine matters little. The passes are the same
libraries' on both sides; what can be had for the same work stands beside what each side does.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F

from bench.machine import write_result
from bench.peer import SIZES, make_photos, make_pipeline_folder
from bench.peer_usual import CaptionedImages, Collate, Usual
from configs.schema import RunConfig
from store.dataset.build import build_index
from store.dataset.sources.image_folder import ImageFolder
from train.data.stream import Stream
from train.models import load_model
from train.objective import make_objective

RESOLUTION, BATCH, TIMES = 128, 4, 6
CPU = torch.device("cpu")


def least_ms(call: Callable[[], Any], times: int = TIMES) -> float:
    """CPU time of this thread, after one call that does not count."""
    call()
    found = []
    for _ in range(times):
        began = time.thread_time()
        call()
        found.append(time.thread_time() - began)
    return round(1000 * min(found), 1)


def measure_passes(usual: Usual) -> dict[str, float]:
    """As they are, and with the memory formats that convolutions may like better."""
    side, width = RESOLUTION // 8, usual.unet.config.cross_attention_dim
    latents, text = torch.randn(BATCH, 4, side, side), torch.randn(BATCH, 77, width)
    timesteps, pixels = torch.randint(0, 1000, (BATCH,)), torch.randn(BATCH, 3, RESOLUTION, RESOLUTION)
    tokens = torch.zeros(BATCH, 77, dtype=torch.long)
    last = torch.channels_last

    def passes(x: torch.Tensor) -> None:
        F.mse_loss(usual.unet(x, timesteps, text, return_dict=False)[0], latents).backward()

    found = {
        "text encoder": least_ms(lambda: usual.text_encoder(tokens)),
        "VAE encoder": least_ms(lambda: usual.vae.encode(pixels)),
        "VAE encoder, channels-last pixels": least_ms(lambda: usual.vae.encode(pixels.to(memory_format=last))),
        "UNet": least_ms(lambda: passes(latents)),
        "UNet, channels-last latents": least_ms(lambda: passes(latents.to(memory_format=last))),
    }
    usual.vae.to(memory_format=last)
    usual.unet.to(memory_format=last)
    found["VAE encoder, weights too"] = least_ms(lambda: usual.vae.encode(pixels.to(memory_format=last)))
    found["UNet, weights too"] = least_ms(lambda: passes(latents.to(memory_format=last)))
    usual.unet.to(memory_format=torch.contiguous_format)
    return found


def measure_update(usual: Usual) -> dict[str, float]:
    weights = list(usual.unet.parameters())
    for weight in weights:
        weight.grad = torch.randn_like(weight) * 1e-3
    fused = torch.optim.AdamW(weights, lr=1e-5, fused=True)
    averages = [weight.detach().clone() for weight in weights]
    masters = [weight.detach() for weight in weights]
    return {
        "AdamW, as torch has it": least_ms(usual.optimizer.step),
        "AdamW, fused": least_ms(fused.step),
        "EMAModel": least_ms(lambda: usual.ema.step(weights)),
        "EMA, one foreach lerp": least_ms(lambda: torch._foreach_lerp_(averages, masters, 1e-4)),
        "clip_grad_norm_": least_ms(lambda: torch.nn.utils.clip_grad_norm_(weights, 1.0)),
        "norm alone": least_ms(lambda: torch.nn.utils.get_total_norm([weight.grad for weight in weights])),
    }


def measure_samples(args: SimpleNamespace, usual: Usual) -> dict[str, float]:
    images = CaptionedImages(Path(args.images), RESOLUTION)
    config = RunConfig(name="parts", model=args.model, data={"images": args.images, "resolution": RESOLUTION}, batch=4)
    config = config.model_copy(update={"precision": "fp32", "zero": 0})
    model = load_model(config, Path(args.model), CPU)
    objective = make_objective(config, model.noise_scheduler, model.dtype, CPU)
    stream = Stream(
        config,
        build_index([ImageFolder(Path(args.images))], None).index,
        model,
        objective.timestep,
    )
    collate = Collate(usual.tokenizer)
    return {
        "a batch of samples, theirs": least_ms(lambda: collate([images[number] for number in range(BATCH)])),
        "a batch of samples, ours": least_ms(lambda: stream[range(BATCH)]),
    }


def main() -> None:
    argparse.ArgumentParser(description=__doc__.split("\n")[0]).parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model = make_pipeline_folder(folder / "model", SIZES["small"], RESOLUTION)
        images = make_photos(folder / "images", 64, RESOLUTION)
        args = SimpleNamespace(model=str(model), images=str(images), precision="fp32", device="cpu")
        args.resolution, args.batch, args.workers = RESOLUTION, BATCH, 0
        usual = Usual(args)
        found = measure_update(usual) | measure_samples(args, usual)
        usual.optimizer.zero_grad()
        found |= measure_passes(usual)
    for part, ms in found.items():
        print(f"{part:<36}{ms:>8.1f} ms")
    print(write_result("peer-parts", {"ms": found}))


if __name__ == "__main__":
    main()
