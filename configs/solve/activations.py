"""What a UNet's passes keep until their backward pass, counted layer by layer from its config, without torch.

The layers are those of diffusers' UNet2DConditionModel (0.42.1). What autograd saves of each is what torch's formulas
for derivatives name: the input of a convolution, of a linear layer and of a norm, both factors of a product, and of
attention queries, keys, values, output and the log of each softmax's sum, as flash and memory-efficient attention keep
them. tests/configs/solve/test_activations.py holds this against what real UNets save.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

TEXT_TOKENS = 77  # that CLIP's text encoders read at one time
WIDER = 4  # the feed-forward layers of a transformer block are so many times wider than the block
_STATISTIC = 4  # bytes: means, deviations and the logs of sums are fp32

# What diffusers takes where a UNet's config lacks the key. A UNet that has another value is not counted.
_COUNTED_ONLY: dict[str, object] = {
    "act_fn": "silu",
    "attention_type": "default",
    "class_embed_type": None,
    "dropout": 0.0,
    "dual_cross_attention": False,
    "encoder_hid_dim_type": None,
    "only_cross_attention": False,
    "resnet_time_scale_shift": "default",
    "reverse_transformer_layers_per_block": None,
}
_DOWN, CROSS_DOWN = "DownBlock2D", "CrossAttnDownBlock2D"
_UP, CROSS_UP = "UpBlock2D", "CrossAttnUpBlock2D"
CROSS_MID = "UNetMidBlock2DCrossAttn"


@dataclass(frozen=True)
class Activations:
    """Bytes of one sample. `recomputed` is the largest part that gradient checkpointing computes again at one time."""

    kept: int
    recomputed: int = 0

    @property
    def peak(self) -> int:
        return self.kept + self.recomputed


@dataclass(frozen=True)
class _Layer:
    """Bytes that one layer keeps of one sample: always, and only where it is not computed again."""

    always: int
    inner: int = 0


def count_activations(
    unet: Mapping[str, Any], side: int, *, width: int, recomputed: bool, tokens: int = TEXT_TOKENS
) -> Activations | None:
    """What one sample's forward pass keeps; None where the UNet has layers of a kind that is not counted here.

    `unet` is its config.json, `side` that of the latents, `width` the bytes of an element in the passes, `recomputed`
    whether gradient checkpointing is on.
    """
    if not is_counted(unet):
        return None
    layers = list(_Walk(unet, width, tokens).list_layers(side))
    always, inner = sum(layer.always for layer in layers), sum(layer.inner for layer in layers)
    if recomputed:
        return Activations(always, max(layer.inner for layer in layers))
    return Activations(always + inner)


def is_counted(unet: Mapping[str, Any]) -> bool:
    lists: list[Any] = [unet.get(key) for key in ("down_block_types", "up_block_types", "block_out_channels")]
    if not all(isinstance(value, (list, tuple)) for value in lists):
        return False
    down, up, channels = lists
    return (
        all(unet.get(key, default) == default for key, default in _COUNTED_ONLY.items())
        and {_DOWN, CROSS_DOWN} >= set(down)
        and {_UP, CROSS_UP} >= set(up)
        and unet.get("mid_block_type", CROSS_MID) in (CROSS_MID, None)
        and len(down) == len(up) == len(channels)
        and bool(down)
    )


class _Walk:
    """One way through the UNet: down, middle and up."""

    def __init__(self, unet: Mapping[str, Any], width: int, tokens: int):
        self._unet, self._width, self._tokens = unet, width, tokens
        self._channels: list[int] = list(unet["block_out_channels"])
        levels = len(self._channels)
        self._layers = repeat_per_level(unet.get("layers_per_block", 2), levels)
        self._depths = repeat_per_level(unet.get("transformer_layers_per_block", 1), levels)
        self._heads = repeat_per_level(unet.get("num_attention_heads") or unet.get("attention_head_dim", 8), levels)
        self._embedding = 4 * self._channels[0]  # of the timestep

    def list_layers(self, side: int) -> Iterator[_Layer]:
        """Every layer on a square of latents with this side."""
        text = repeat_per_level(self._unet.get("cross_attention_dim", 1280), 1)[0]
        yield self._keep(self._unet.get("in_channels", 4) * side**2 + self._tokens * text)  # conv_in; the text's states
        yield self._keep(self._channels[0] + 3 * self._embedding)  # the timestep's embedding
        if self._unet.get("addition_embed_type") == "text_time":  # that of sizes and pooled text, which is added to it
            yield self._keep(self._unet["projection_class_embeddings_input_dim"] + 2 * self._embedding)
        sides = [side]
        for level, kind in enumerate(self._unet["down_block_types"]):
            yield from self._down(level, kind, sides[-1])
            if level < len(self._channels) - 1:
                yield self._keep(self._channels[level] * sides[-1] ** 2)  # the strided convolution
                sides.append((sides[-1] + 1) // 2)
        if self._unet.get("mid_block_type", CROSS_MID) is not None:
            yield from self._middle(sides[-1])
        for level, kind in zip(reversed(range(len(sides))), self._unet["up_block_types"], strict=True):
            yield from self._up(level, kind, sides[level])
            if level:
                yield self._keep(self._channels[level] * sides[level - 1] ** 2)  # the convolution on the larger side
        yield self._keep(3 * self._channels[0] * side**2)  # the last norm, its activation, conv_out

    def _down(self, level: int, kind: str, side: int) -> Iterator[_Layer]:
        before, channels = self._channels[max(0, level - 1)], self._channels[level]
        for number in range(self._layers[level]):
            yield self._resnet(channels if number else before, channels, side)
            if kind == CROSS_DOWN:
                yield from self._transformer(level, number, side)

    def _middle(self, side: int) -> Iterator[_Layer]:
        """Its first layer is not computed again, whatever gradient checkpointing does with the others."""
        channels = self._channels[-1]
        first = self._resnet(channels, channels, side)
        yield _Layer(first.always + first.inner)
        yield from self._transformer(len(self._channels) - 1, 0, side)
        yield self._resnet(channels, channels, side)

    def _up(self, level: int, kind: str, side: int) -> Iterator[_Layer]:
        """Each layer's input has the channels of what the way down left for it beside those of the layer before."""
        last = len(self._channels) - 1
        below, channels = self._channels[min(level + 1, last)], self._channels[level]
        count = self._layers[level] + 1
        for number in range(count):
            skipped = self._channels[max(0, level - 1)] if number == count - 1 else channels
            yield self._resnet((channels if number else below) + skipped, channels, side)
            if kind == CROSS_UP:
                yield from self._transformer(level, number, side)

    def _resnet(self, before: int, after: int, side: int) -> _Layer:
        """ResnetBlock2D: norm, activation and convolution, twice; the timestep is added between."""
        inner = (2 * before + 3 * after) * side**2 + self._embedding
        return _Layer(self._width * before * side**2, self._width * inner)

    def _transformer(self, level: int, number: int, side: int) -> Iterator[_Layer]:
        """Transformer2DModel: a norm and a projection before its blocks, a projection after them."""
        channels, depth = self._channels[level], self._depths[level]
        if isinstance(depth, Sequence):  # one for each of the level's transformers
            depth = depth[number]
        yield self._keep(3 * channels * side**2)
        for _ in range(depth):
            yield self._block(channels, self._heads[level], side**2)

    def _block(self, channels: int, heads: int, pixels: int) -> _Layer:
        """BasicTransformerBlock: self-attention, attention to the text, feed-forward with GEGLU; a norm before each."""
        of_pixels = 3 * pixels * channels  # what its norms answer
        of_pixels += 2 * pixels * channels  # what the second and the third norm get
        of_pixels += (3 + 1) * pixels * channels  # queries, keys, values and what attention answers
        of_pixels += (1 + 1) * pixels * channels  # the same of the attention to the text, whose keys and values follow
        of_pixels += 4 * WIDER * pixels * channels  # both halves before the gate, the gate, and their product
        of_text = 2 * self._tokens * channels
        statistics = (3 * 2 + 2 * heads) * pixels
        return _Layer(self._width * pixels * channels, self._width * (of_pixels + of_text) + _STATISTIC * statistics)

    def _keep(self, elements: int) -> _Layer:
        return _Layer(self._width * elements)


def repeat_per_level(value: Any, levels: int) -> list[Any]:
    """A key of the config that may be written once for all levels."""
    return list(value) if isinstance(value, list | tuple) else [value] * levels
