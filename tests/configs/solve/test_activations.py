"""The activations that are counted from a UNet's config, against what real UNets save for their backward passes.

The UNets live on torch's meta device: shapes and storages are real, and no number is computed.
"""

from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel

from configs.pipelines import SD1, SD2, SDXL
from configs.solve.activations import count_activations

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


def measure(config: dict[str, Any], side: int, dtype: torch.dtype, recomputed: bool) -> int:
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
        text = torch.empty(1, 77, config["cross_attention_dim"], dtype=dtype)
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
        (SD2.configs["unet"], 64, torch.float32),
        (SDXL.configs["unet"], 128, torch.bfloat16),
        (TINY, 8, torch.float32),
        (NESTED, 9, torch.bfloat16),  # a side that does not halve
    ],
    ids=["SD1-512", "SD2-768", "SD2-512-fp32", "SDXL-1024", "tiny", "nested"],
)
@pytest.mark.parametrize("recomputed", [False, True], ids=["plain", "checkpointing"])
def test_what_is_counted_is_what_autograd_saves(
    config: dict[str, Any], side: int, dtype: torch.dtype, recomputed: bool
) -> None:
    counted = count_activations(config, side, width=dtype.itemsize, recomputed=recomputed)
    assert counted is not None
    assert counted.kept == pytest.approx(measure(dict(config), side, dtype, recomputed), rel=0.01)


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
    ],
)
def test_layers_of_another_kind_are_not_guessed(change: dict[str, Any]) -> None:
    assert count_activations(TINY | change, 8, width=2, recomputed=False) is None
    assert count_activations({}, 8, width=2, recomputed=False) is None
