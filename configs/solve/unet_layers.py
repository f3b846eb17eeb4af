"""The linear and convolution layers of a UNet, by name and size, from its config and without torch.

The names are those of diffusers' UNet2DConditionModel (0.42.1). tests/configs/solve/test_adapters.py holds this against
the layers of real UNets.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from configs.solve.activations import CROSS_DOWN, CROSS_MID, CROSS_UP, WIDER, is_counted, repeat_per_level

TEXT = -1  # in the place of a level: what works on the text's states


@dataclass(frozen=True)
class Layer:
    """One layer. Its kernel covers `kernel` × `kernel` pixels; a linear layer knows none, and has 0."""

    name: str
    inputs: int
    outputs: int
    kernel: int = 0
    level: int | None = field(default=None, compare=False)  # how often latents are halved before; None: no such thing


def list_unet_layers(unet: Mapping[str, Any]) -> list[Layer] | None:
    """All of them, in no order that means anything; None where the UNet has layers of a kind that is not known here.
    `unet` is its config.json."""
    if not is_counted(unet) or unet.get("addition_embed_type") not in (None, "text_time"):
        return None
    if any(unet.get(key) is not None for key in ("time_embedding_dim", "time_cond_proj_dim", "encoder_hid_dim")):
        return None
    return list(_Names(unet).list_layers())


class _Names:
    """One way through the UNet: ends, down, middle and up."""

    def __init__(self, unet: Mapping[str, Any]):
        self._unet = unet
        self._channels: list[int] = list(unet["block_out_channels"])
        levels = len(self._channels)
        self._layers = repeat_per_level(unet.get("layers_per_block", 2), levels)
        self._depths = repeat_per_level(unet.get("transformer_layers_per_block", 1), levels)
        self._text = repeat_per_level(unet.get("cross_attention_dim", 1280), levels)
        self._embedding = 4 * self._channels[0]  # of the timestep

    def list_layers(self) -> Iterator[Layer]:
        unet, channels = self._unet, self._channels
        yield Layer("conv_in", unet.get("in_channels", 4), channels[0], unet.get("conv_in_kernel", 3), level=0)
        yield from self._embed("time_embedding", channels[0])
        if unet.get("addition_embed_type") == "text_time":
            yield from self._embed("add_embedding", unet["projection_class_embeddings_input_dim"])
        for level, kind in enumerate(unet["down_block_types"]):
            yield from self._down(level, kind)
        if unet.get("mid_block_type", CROSS_MID) is not None:
            yield from self._middle()
        for number, kind in enumerate(unet["up_block_types"]):
            yield from self._up(number, kind)
        yield Layer("conv_out", channels[0], unet.get("out_channels", 4), unet.get("conv_out_kernel", 3), level=0)

    def _embed(self, name: str, inputs: int) -> Iterator[Layer]:
        """TimestepEmbedding."""
        yield Layer(f"{name}.linear_1", inputs, self._embedding)
        yield Layer(f"{name}.linear_2", self._embedding, self._embedding)

    def _down(self, level: int, kind: str) -> Iterator[Layer]:
        name, channels = f"down_blocks.{level}", self._channels[level]
        for number in range(self._layers[level]):
            before = channels if number else self._channels[max(0, level - 1)]
            yield from self._resnet(f"{name}.resnets.{number}", before, level)
            if kind == CROSS_DOWN:
                yield from self._transformer(f"{name}.attentions.{number}", level, number)
        if level < len(self._channels) - 1:
            yield Layer(f"{name}.downsamplers.0.conv", channels, channels, 3, level=level + 1)

    def _middle(self) -> Iterator[Layer]:
        level = len(self._channels) - 1
        yield from self._resnet("mid_block.resnets.0", self._channels[level], level)
        yield from self._transformer("mid_block.attentions.0", level, 0)
        yield from self._resnet("mid_block.resnets.1", self._channels[level], level)

    def _up(self, number: int, kind: str) -> Iterator[Layer]:
        """Each layer's input has the channels of what the way down left for it beside those of the layer before."""
        last = len(self._channels) - 1
        level = last - number
        name, channels, below = f"up_blocks.{number}", self._channels[level], self._channels[min(level + 1, last)]
        count = self._layers[level] + 1
        for layer in range(count):
            skipped = self._channels[max(0, level - 1)] if layer == count - 1 else channels
            yield from self._resnet(f"{name}.resnets.{layer}", (channels if layer else below) + skipped, level)
            if kind == CROSS_UP:
                yield from self._transformer(f"{name}.attentions.{layer}", level, layer)
        if level:
            yield Layer(f"{name}.upsamplers.0.conv", channels, channels, 3, level=level - 1)

    def _resnet(self, name: str, before: int, level: int) -> Iterator[Layer]:
        after = self._channels[level]
        yield Layer(f"{name}.conv1", before, after, 3, level=level)
        yield Layer(f"{name}.time_emb_proj", self._embedding, after)
        yield Layer(f"{name}.conv2", after, after, 3, level=level)
        if before != after:
            yield Layer(f"{name}.conv_shortcut", before, after, 1, level=level)

    def _transformer(self, name: str, level: int, number: int) -> Iterator[Layer]:
        """Transformer2DModel around its BasicTransformerBlocks."""
        channels, depth, text = self._channels[level], self._depths[level], self._text[level]
        if isinstance(depth, Sequence):  # one for each of the level's transformers
            depth = depth[number]
        kernel = 0 if self._unet.get("use_linear_projection", False) else 1
        yield Layer(f"{name}.proj_in", channels, channels, kernel, level=level)
        for block in range(depth):
            inner = f"{name}.transformer_blocks.{block}"
            for attention, told, place in (("attn1", channels, level), ("attn2", text, TEXT)):
                yield Layer(f"{inner}.{attention}.to_q", channels, channels, level=level)
                yield Layer(f"{inner}.{attention}.to_k", told, channels, level=place)
                yield Layer(f"{inner}.{attention}.to_v", told, channels, level=place)
                yield Layer(f"{inner}.{attention}.to_out.0", channels, channels, level=level)
            yield Layer(f"{inner}.ff.net.0.proj", channels, 2 * WIDER * channels, level=level)
            yield Layer(f"{inner}.ff.net.2", WIDER * channels, channels, level=level)
        yield Layer(f"{name}.proj_out", channels, channels, kernel, level=level)
