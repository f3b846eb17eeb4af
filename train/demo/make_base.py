"""Make the demo's base model: a whole, tiny Stable Diffusion that knows grey shapes and no colours.

    python -P -m lockstep train.demo.make_base OUT_DIR

trains the VAE on shapes of any colour, the text encoder to tell the captions' words apart, and then, with both frozen,
the UNet on grey shapes whose captions name colours at random. That the captions lie about the colour is the point: the
fine-tune has something to learn. It took 25 minutes on two CPU cores shared with other work. The same seed, threads,
torch and kind of CPU make the same bytes.
"""

import itertools
import sys
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from tokenizers.pre_tokenizers import ByteLevel
from torch.optim import AdamW
from torch.optim.lr_scheduler import OneCycleLR
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from train.demo.shapes import BACKGROUNDS, COLOURS, RGB, SHAPES, SIZE, draw_random_shape, make_caption

SEED = 0
THREADS = 2  # sums depend on how they are split, so the bits depend on this
GREY: RGB = (128, 128, 128)
NOISE_SCHEDULE = {  # Stable Diffusion 1.5's
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "prediction_type": "epsilon",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


def make_tokenizer() -> CLIPTokenizer:
    """CLIP's byte-pair encoding, with merges that make one token of every word the captions use."""
    words = ["a", "an", "on", "background", "grey", *COLOURS, *SHAPES, *BACKGROUNDS]
    spelled = [[*word[:-1], word[-1] + "</w>"] for word in words]
    merges: list[tuple[str, str]] = []
    while any(len(word) > 1 for word in spelled):
        counts = Counter(pair for word in spelled for pair in itertools.pairwise(word))
        pair = min(counts, key=lambda pair: (-counts[pair], pair))
        merges.append(pair)
        spelled = [_merge(word, pair) for word in spelled]
    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(letter + "</w>" for letter in letters), *("".join(pair) for pair in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    return CLIPTokenizer(vocabulary, merges, model_max_length=77)


def _merge(word: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    for letter in word:
        if merged and (merged[-1], letter) == pair:
            merged[-1] += letter
        else:
            merged.append(letter)
    return merged


def make_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        projection_dim=64,
        max_position_embeddings=77,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)


def make_vae() -> AutoencoderKL:
    """32×32×3 pixels ↔ 8×8×4 latents."""
    return AutoencoderKL(
        sample_size=SIZE,
        latent_channels=4,
        block_out_channels=(16, 32, 32),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        norm_num_groups=8,
        force_upcast=False,
    )


def make_unet() -> UNet2DConditionModel:
    """Reads the caption at 4×4 only, where attention costs little; a colour belongs to the whole shape anyway."""
    return UNet2DConditionModel(
        sample_size=SIZE // 4,
        in_channels=4,
        out_channels=4,
        block_out_channels=(32, 64),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=64,
        attention_head_dim=2,  # diffusers means the number of heads
        norm_num_groups=8,
    )


def stack_pixels(images: list[Image.Image]) -> torch.Tensor:
    """(N, 3, SIZE, SIZE) in [-1, 1]."""
    stacked = np.stack([np.asarray(image) for image in images])
    return torch.from_numpy(stacked).permute(0, 3, 1, 2).float() / 127.5 - 1


def draw_any_shapes(rng: np.random.Generator, count: int) -> torch.Tensor:
    """Shapes and backgrounds in the captions' colours (7 in 10) or in any; pixels."""
    named = [*COLOURS.values(), GREY]

    def colour(names: list[RGB]) -> RGB:
        return names[rng.integers(len(names))] if rng.random() < 0.7 else tuple(rng.integers(0, 256, 3).tolist())

    def image() -> Image.Image:
        shape = str(rng.choice(SHAPES))
        return draw_random_shape(rng, shape, colour(named), colour(list(BACKGROUNDS.values())))

    return stack_pixels([image() for _ in range(count)])


def draw_grey_shapes(rng: np.random.Generator, words: torch.Tensor) -> torch.Tensor:
    """One grey shape for each caption, whatever colour the caption names; pixels."""
    picked = [(SHAPES[shape], list(BACKGROUNDS.values())[ground]) for _, shape, ground in words.tolist()]
    return stack_pixels([draw_random_shape(rng, shape, GREY, ground) for shape, ground in picked])


def train_vae(vae: AutoencoderKL, images: torch.Tensor, steps: int, batch: int = 32, lr: float = 2e-3) -> None:
    """Minimise the pixels' error plus a whisper of KL divergence, as Stable Diffusion did."""
    optimizer, lr_schedule = _adam(vae.parameters(), lr, steps)
    for step in range(1, steps + 1):
        x = images[torch.randint(len(images), (batch,))]
        posterior = vae.encode(x).latent_dist
        x_hat = vae.decode(posterior.sample()).sample
        loss = F.mse_loss(x_hat, x) + F.l1_loss(x_hat, x) + 1e-5 * posterior.kl().mean() / x[0].numel()
        _update(optimizer, lr_schedule, loss)
        _report("vae", step, steps, loss)


@torch.no_grad()
def encode_latents(vae: AutoencoderKL, images: torch.Tensor) -> torch.Tensor:
    """Unscaled latents (N, 4, 8, 8): the posterior's mean."""
    return torch.cat([vae.encode(part).latent_dist.mean for part in torch.split(images, 64)])


def train_text_encoder(encoder: CLIPTextModel, tokens: torch.Tensor, words: torch.Tensor, steps: int) -> None:
    """Make every state after a caption's last word tell its words, colours too, as CLIP's do that saw such images.

    tokens (captions, 77) and words (captions, 3), the numbers of each caption's colour, shape and background. Trained
    together with the UNet on grey shapes instead, it would map all colours to the same states.
    """
    sizes = (words.amax(0) + 1).tolist()
    readout = torch.nn.Linear(encoder.config.hidden_size, sum(sizes))
    optimizer, lr_schedule = _adam([*encoder.parameters(), *readout.parameters()], 1e-3, steps)
    end = int(tokens.argmax(1).max())  # the position of the last end-of-text that is not padding
    for step in range(1, steps + 1):
        logits = readout(encoder(tokens).last_hidden_state[:, end:]).split(sizes, dim=-1)
        targets = words[:, None].expand(-1, logits[0].shape[1], -1)
        losses = [F.cross_entropy(logits[i].transpose(1, 2), targets[..., i]) for i in range(len(sizes))]
        loss = torch.stack(losses).sum()
        _update(optimizer, lr_schedule, loss)
        _report("text encoder", step, steps, loss)


def train_unet(
    unet: UNet2DConditionModel, latents: torch.Tensor, states: torch.Tensor, captions: torch.Tensor, steps: int
) -> None:
    """DDPM's epsilon loss (Ho et al. 2020, eq. 14).

    latents (N, 4, 8, 8), scaled; states (captions + 1, 77, 64), the last those of the empty caption, which replaces one
    caption in ten for classifier-free guidance; captions (N,), each image's.
    """
    batch, lr = 32, 2e-3
    noise_scheduler = DDPMScheduler.from_config(DDIMScheduler(**NOISE_SCHEDULE).config)
    optimizer, lr_schedule = _adam(unet.parameters(), lr, steps)
    for step in range(1, steps + 1):
        picked = torch.randint(len(latents), (batch,))
        told = torch.where(torch.rand(batch) < 0.1, len(states) - 1, captions[picked])
        t = torch.randint(1000, (batch,))
        epsilon = torch.randn(batch, *latents.shape[1:])
        z_t = noise_scheduler.add_noise(latents[picked], epsilon, t)
        loss = F.mse_loss(unet(z_t, t, states[told]).sample, epsilon)
        _update(optimizer, lr_schedule, loss)
        _report("unet", step, steps, loss)


def _adam(parameters: Iterable[torch.nn.Parameter], lr: float, steps: int) -> tuple[AdamW, OneCycleLR]:
    optimizer = AdamW(parameters, lr=lr, weight_decay=1e-4)
    return optimizer, OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.05)


def _update(optimizer: AdamW, lr_schedule: OneCycleLR, loss: torch.Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    for group in optimizer.param_groups:
        torch.nn.utils.clip_grad_norm_(group["params"], 1.0)
    optimizer.step()
    lr_schedule.step()


_START = time.monotonic()


def _report(part: str, step: int, steps: int, loss: torch.Tensor) -> None:
    if step % 100 == 0:
        print(f"{part} step {step}/{steps} loss {loss.item():.4f} after {time.monotonic() - _START:.0f} s", flush=True)


def main(folder: Path, vae_steps: int = 2000, text_steps: int = 200, unet_steps: int = 1500) -> None:
    torch.set_num_threads(THREADS)
    torch.manual_seed(SEED)
    rng = np.random.default_rng(SEED)
    vae = make_vae()
    train_vae(vae, draw_any_shapes(rng, 8192), vae_steps)
    factor = 1 / encode_latents(vae, draw_any_shapes(rng, 1024)).std().item()
    vae.register_to_config(scaling_factor=round(factor, 5))

    torch.manual_seed(SEED)
    tokenizer = make_tokenizer()
    text_encoder = make_text_encoder(tokenizer)
    names = [[*COLOURS, "grey"], SHAPES, BACKGROUNDS]
    words = torch.cartesian_prod(*(torch.arange(len(words_of_kind)) for words_of_kind in names))
    captions = [*(make_caption(*triple) for triple in itertools.product(*names)), ""]
    tokens = tokenizer(captions, padding="max_length", return_tensors="pt").input_ids
    train_text_encoder(text_encoder, tokens[:-1], words, text_steps)
    with torch.no_grad():
        states = text_encoder(tokens).last_hidden_state

    torch.manual_seed(SEED)
    unet = make_unet()
    drawn = torch.from_numpy(rng.integers(len(words), size=4096))
    latents = encode_latents(vae, draw_grey_shapes(rng, words[drawn])) * vae.config.scaling_factor
    train_unet(unet, latents, states, drawn, unet_steps)

    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=DDIMScheduler(**NOISE_SCHEDULE),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)
    tokenizer.backend_tokenizer.model.save(str(folder / "tokenizer"))  # vocab.json and merges.txt, as CLIP's own has


if __name__ == "__main__":
    main(Path(sys.argv[1]))
