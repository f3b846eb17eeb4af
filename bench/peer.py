"""Our training beside the usual script, accelerate with diffusers: `python -m bench.peer`.

About 5 minutes on two idle cores; prints the ratio of the two speeds, writes bench/results/peer-DATE.json.
On a CPU: Stable Diffusion 1.5's layout with 12.9 M random weights in the UNet, VAE and text encoder narrower in
proportion, 128 px JPEGs, fp32, one rank with all cores. On a GPU `--unet sd15 --resolution 512 --batch 16 --precision
bf16` is the real size.

Both are processes of their own on the same folder of images, the same pipeline folder and the same batch, with EMA on
and, but for `--cache latents`, nothing cached, and take turns: a block of steps of the one, a block of the other. Ours
(bench/peer_ours.py) is a whole attempt, with reports and agreement on notices, with the other defaults that a user
gets. The other (bench/peer_usual.py) does what diffusers' text-to-image example does, with as many workers as ours.
What their workers decode ahead, at most two micro-batches each, is decoded while the other's block begins.

ours/usual  how many times as many images per second: each of our blocks against the mean of the other's blocks before
            and after it, median [lower, upper quartile]; aim 1.15. "CPU" is the same from the CPU
            time of a side and its workers, which other programs on the machine disturb less
usual/usual the other against its own next block: what the machine's noise alone makes of a ratio
"""

import argparse
import itertools
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel

from bench.machine import make_environment, summarize, write_result
from bench.turns import Player
from train.demo.make_base import NOISE_SCHEDULE, make_tokenizer

AIM = 1.15
DRAWN = 64  # images that differ
# widths of UNet and VAE, width and depth of the text encoder, groups of the norms
SIZES: dict[str, dict[str, Any]] = {
    "small": {"unet": (48, 96, 144, 144), "vae": (16, 32, 64, 64), "text": (256, 2), "groups": 8},
    "sd15": {"unet": (320, 640, 1280, 1280), "vae": (128, 256, 512, 512), "text": (768, 12), "groups": 32},
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--unet", choices=SIZES, default="small", help="12.9 M or 860 M parameters")
    parser.add_argument("--resolution", type=int, default=128, help="pixels")
    parser.add_argument("--batch", type=int, default=4, help="samples per step, one micro-batch")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--workers", type=int, default=2, help="processes that decode, of each side")
    parser.add_argument("--blocks", type=int, default=12, help="counted blocks of each side")
    parser.add_argument("--block-steps", type=int, default=10, help="steps of one block")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--cache", choices=["off", "latents"], default="off", help="what ours encodes beforehand")
    parser.add_argument("--settings", type=json.loads, default={}, help="more keys of our config, as JSON")
    return parser.parse_args()


def make_pipeline_folder(folder: Path, size: dict[str, Any], resolution: int) -> Path:
    """A whole Stable Diffusion of random weights."""
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    width, depth = size["text"]
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=depth,
        num_attention_heads=width // 64,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    vae = AutoencoderKL(
        block_out_channels=size["vae"],
        layers_per_block=2,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=size["groups"],
    )
    unet = UNet2DConditionModel(
        sample_size=resolution // 8,
        block_out_channels=size["unet"],
        cross_attention_dim=width,
        attention_head_dim=8,
        norm_num_groups=size["groups"],
    )
    StableDiffusionPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=DDIMScheduler(**NOISE_SCHEDULE),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder


def make_photos(folder: Path, count: int, resolution: int) -> Path:
    """JPEGs as smooth as photographs, a half larger than the resolution, with captions of about 20 words; after DRAWN
    of them the same ones again."""
    folder.mkdir(parents=True)
    draw = np.random.default_rng(0)
    size = (3 * resolution // 2, 5 * resolution // 4)
    lines = []
    for number in range(min(count, DRAWN)):
        pixels = np.full((size[1], size[0], 3), 128, np.float32)
        for cells, amplitude in ((5, 60), (20, 30), (80, 10)):
            coarse = draw.standard_normal((cells, cells, 3)).astype(np.float32)
            layers = [np.asarray(Image.fromarray(coarse[..., c]).resize(size)) for c in range(3)]
            pixels += amplitude * np.stack(layers, -1)
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(folder / f"{number:04d}.jpg", quality=90)
    for number in range(count):
        if number >= DRAWN:
            os.link(folder / f"{number % DRAWN:04d}.jpg", folder / f"{number:04d}.jpg")
        caption = f"a red circle on a white background and a grey square on a blue background, number {number}"
        lines.append(json.dumps({"file_name": f"{number:04d}.jpg", "text": caption}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def compare(args: argparse.Namespace, folder: Path) -> dict[str, list[tuple[float, float]]]:
    """Seconds and CPU seconds of every block of both sides; each of ours was played between two of the usual's."""
    model = make_pipeline_folder(folder / "model", SIZES[args.unet], args.resolution)
    steps = (args.blocks + 2) * args.block_steps
    images = make_photos(folder / "images", steps * args.batch, args.resolution)  # so many that no epoch ends
    options = vars(args) | {"folder": str(folder), "model": str(model), "images": str(images), "steps": steps}
    threads = int(
        os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0))
    )  # a lone rank's, as `submit` has it
    environment = make_environment(args.device, threads)
    usual, ours = (
        Player(f"bench.peer_{name}", options, environment, folder / f"{name}.log") for name in ("usual", "ours")
    )
    for player in (usual, ours):
        player.wait()
    for player in (usual, ours):
        player.play(args.block_steps)  # warms up
    times = {"usual": [usual.play(args.block_steps)], "ours": []}
    for _ in range(args.blocks):
        times["ours"].append(ours.play(args.block_steps))
        times["usual"].append(usual.play(args.block_steps))
    for player in (usual, ours):
        player.end()
    return times


def pair(times: dict[str, list[float]]) -> list[float]:
    """The mean of the usual's blocks before and after each of ours, as a multiple of it."""
    around = [(before + after) / 2 for before, after in itertools.pairwise(times["usual"])]
    return [usual / ours for usual, ours in zip(around, times["ours"], strict=True)]


def main() -> None:
    args = arguments()
    began, load = time.perf_counter(), [os.getloadavg()[0]]
    with tempfile.TemporaryDirectory() as folder:
        times = compare(args, Path(folder))
    load.append(os.getloadavg()[0])
    seconds, cpu = ({name: [block[i] for block in blocks] for name, blocks in times.items()} for i in (0, 1))
    ratios = {
        "ours/usual": summarize(pair(seconds)),
        "ours/usual, CPU": summarize(pair(cpu)),
        "usual/usual": summarize([before / after for before, after in itertools.pairwise(seconds["usual"])]),
    }
    images = args.block_steps * args.batch
    speeds = {name: round(images / statistics.median(blocks), 3) for name, blocks in seconds.items()}
    took = round(time.perf_counter() - began)
    for name, speed in speeds.items():
        print(f"{name:<16}{speed:>9.2f} images/s")
    for name, row in ratios.items():
        print(f"{name:<16}{row['median']:>9.3f} [{row['low']:.3f}, {row['high']:.3f}]")
    print(f"aim {AIM}: {'reached' if ratios['ours/usual']['median'] >= AIM else 'not reached'}")
    record = {"took_s": took, "load": load, "options": vars(args), "images_per_s": speeds}
    record |= {"ratios": ratios, "blocks_s_cpu_s": times}
    print(f"{took} s, load {load} → {write_result('peer', record)}")


if __name__ == "__main__":
    main()
