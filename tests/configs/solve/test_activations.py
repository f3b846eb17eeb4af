"""The activations that are counted from a UNet's config, against what real UNets save for their backward passes.

The UNets live on torch's meta device: shapes and storages are real, and no number is computed.
"""

import weakref
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from configs.known_models import SD1, SD2, SDXL
from configs.schema import RunConfig
from configs.solve.activations import count_activations
from configs.solve.device_memory import VAE_TENSORS, count_sample

TINY = {  # as tests/tiny.py makes them, with the heads of Stable Diffusion 2
    "mid_block_type": None,
    "block_out_channels": (16, 32),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "cross_attention_dim": 32,
    "norm_num_groups": 4,
    "attention_head_dim": [1, 2],
    "use_linear_projection": True,
}
NESTED = TINY | {  # layers and transformers that differ from level to level and within one
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "layers_per_block": [2, 1],
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "transformer_layers_per_block": [2, 3],
    "use_linear_projection": False,
}
XL = TINY | {  # told sizes and a pooled embedding
    "cross_attention_dim": 80,
    "transformer_layers_per_block": [1, 2],
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
GIB = 2**30


class Attention(torch.autograd.Function):
    """What flash and memory-efficient attention keep, which is not what torch keeps on the meta device."""

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        output = torch.empty_like(query)
        log_sum = torch.empty(query.shape[:-1], dtype=torch.float32, device=query.device)
        ctx.save_for_backward(query, key, value, output, log_sum)
        return output


@pytest.fixture(autouse=True)
def _flash_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **_: object) -> object:
        return Attention.apply(query, key, value)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", attend)


class LiveStorages(TorchDispatchMode):
    """Bytes of the storages that operators have made and nobody has let go of yet, and their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        answer = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(answer):
            if isinstance(tensor, torch.Tensor) and (storage := tensor.untyped_storage())._cdata not in self.sizes:
                self.sizes[storage._cdata] = storage.nbytes()
                weakref.finalize(storage, self.sizes.pop, storage._cdata)
        self.peak = max(self.peak, sum(self.sizes.values()))
        return answer


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_what_the_encoder_of_a_vae_holds_at_its_peak(dtype: torch.dtype) -> None:
    """Of the VAE of Stable Diffusion: it has no gradients, and is over before the UNet's pass begins."""
    blocks = SD1.configs["vae"]["block_out_channels"]
    with torch.device("meta"):
        vae = AutoencoderKL(
            block_out_channels=blocks,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
        ).to(dtype)
        assert sum(parameter.numel() for parameter in vae.parameters()) == SD1.parameters["vae"]
        pixels = torch.empty(3, 3, 512, 512, dtype=dtype)
        with torch.no_grad(), LiveStorages() as live:
            vae.encode(pixels)
    assert live.peak == pytest.approx(3 * VAE_TENSORS * dtype.itemsize * blocks[0] * 512**2, rel=0.01)


def measure(config: dict[str, Any], side: int, dtype: torch.dtype, recomputed: bool, tokens: int = 77) -> int:
    """Bytes of all storages, the parameters' apart, that one sample's forward pass saves."""
    storages: dict[int, torch.UntypedStorage] = {}

    def save(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        storages[storage._cdata] = storage
        return tensor

    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(config).to(dtype).train()
        if recomputed:
            unet.enable_gradient_checkpointing()
        latents = torch.empty(1, 4, side, side, dtype=dtype)
        text = torch.empty(1, tokens, config["cross_attention_dim"], dtype=dtype)
        more = {}
        if config.get("addition_embed_type"):
            more["added_cond_kwargs"] = {
                "text_embeds": torch.empty(1, 1280, dtype=dtype),
                "time_ids": torch.empty(1, 6, dtype=dtype),
            }
        with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
            answer = unet(latents, torch.zeros(1, dtype=torch.long), text, **more).sample
    assert answer.shape == latents.shape
    own = {parameter.untyped_storage()._cdata for parameter in unet.parameters()}
    return sum(storage.nbytes() for key, storage in storages.items() if key not in own)


@pytest.mark.parametrize(
    ("config", "side", "dtype"),
    [
        (SD1.configs["unet"], 64, torch.bfloat16),
        (SD2.configs["unet"], 96, torch.bfloat16),
        (SDXL.configs["unet"], 128, torch.bfloat16),
        (TINY, 8, torch.float32),
        (NESTED, 9, torch.bfloat16),  # a side that does not halve
        (XL, 8, torch.float32),
    ],
    ids=["SD1-512", "SD2-768", "SDXL-1024", "tiny", "nested", "tiny-XL"],
)
@pytest.mark.parametrize("recomputed", [False, True], ids=["plain", "checkpointing"])
def test_what_is_counted_is_what_autograd_saves(
    config: dict[str, Any], side: int, dtype: torch.dtype, recomputed: bool
) -> None:
    counted = count_activations(config, side, width=dtype.itemsize, recomputed=recomputed)
    assert counted is not None
    assert counted.kept == pytest.approx(measure(dict(config), side, dtype, recomputed), rel=0.01)


@pytest.mark.parametrize("recomputed", [False, True], ids=["plain", "checkpointing"])
def test_long_captions_are_counted(recomputed: bool) -> None:
    counted = count_activations(TINY, 8, width=4, recomputed=recomputed, tokens=231)
    assert counted is not None
    assert counted.kept == pytest.approx(measure(dict(TINY), 8, torch.float32, recomputed, tokens=231), rel=0.01)


def test_a_run_is_counted_with_the_tokens_that_it_reads() -> None:
    config = RunConfig(name="a", model="b", precision="bf16", data={"images": "-", "caption_tokens": 225})
    assert count_sample(config, SD1) == count_activations(
        SD1.configs["unet"], 64, width=2, recomputed=False, tokens=231
    )


@pytest.mark.parametrize(
    ("config", "side", "plain", "checkpointing"),
    [
        (SD1.configs["unet"], 64, 0.872, 0.144),
        (SD2.configs["unet"], 64, 0.872, 0.144),
        (SD2.configs["unet"], 96, 1.958, 0.324),
        (SDXL.configs["unet"], 128, 6.416, 0.547),
    ],
)
def test_gibibytes_per_sample_in_16_bits(config: dict[str, Any], side: int, plain: float, checkpointing: float) -> None:
    kept = count_activations(config, side, width=2, recomputed=False)
    again = count_activations(config, side, width=2, recomputed=True)
    assert kept is not None
    assert again is not None
    assert (kept.kept / GIB, again.kept / GIB) == (
        pytest.approx(plain, abs=1e-3),
        pytest.approx(checkpointing, abs=1e-3),
    )
    assert kept.recomputed == 0
    assert 0 < again.recomputed < kept.kept / 10


@pytest.mark.parametrize(
    "change",
    [
        {"down_block_types": ("DownBlock2D", "AttnDownBlock2D")},
        {"up_block_types": ("SimpleCrossAttnUpBlock2D", "UpBlock2D")},
        {"mid_block_type": "UNetMidBlock2D"},
        {"dropout": 0.1},
        {"act_fn": "gelu"},
        {"resnet_time_scale_shift": "scale_shift"},
        {"down_block_types": ("DownBlock2D",)},
        {"up_block_types": None},
        {"block_out_channels": 5},
    ],
)
def test_layers_of_another_kind_are_not_guessed(change: dict[str, Any]) -> None:
    assert count_activations(TINY | change, 8, width=2, recomputed=False) is None
    assert count_activations({}, 8, width=2, recomputed=False) is None
