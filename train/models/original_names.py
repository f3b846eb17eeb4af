"""What a pipeline's tensors are called in the original layout: the one file in which CompVis and Stability AI released
Stable Diffusion, and which ComfyUI and AUTOMATIC1111's web UI read.

The names follow from the structure. The original counts a UNet's blocks in the order in which they run (openaimodel.py
of CompVis/latent-diffusion), a VAE's by their level, and numbers the decoder's levels from the finest one on. A text
encoder keeps transformers' names where it is OpenAI's; where it is OpenCLIP's it has OpenCLIP's own, and queries, keys
and values in one tensor, as torch.nn.MultiheadAttention keeps them. diffusers reads this layout and does not write it.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from configs.errors import UserError

# diffusers' layers of a ResnetBlock2D → the original's: of the UNet, which is told the timestep, and of the VAE
_UNET_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_VAE_RESNET = {
    "norm1": "norm1",
    "conv1": "conv1",
    "norm2": "norm2",
    "conv2": "conv2",
    "conv_shortcut": "nin_shortcut",
}
# Twice: files of 2022, such as Stable Diffusion 1.5's on the hub, have the names that diffusers used then.
_VAE_ATTENTION = {
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
    "query": "q",
    "key": "k",
    "value": "v",
    "proj_attn": "proj_out",
}
_OPEN_CLIP = {
    "embeddings.token_embedding": "token_embedding",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm": "ln_final",
    "text_projection.weight": "text_projection",
}
_OPEN_CLIP_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.q_proj": "attn.in_proj",  # with those of keys and values
    "self_attn.out_proj": "attn.out_proj",
}
_POSITIONS = "embeddings.position_ids"  # 0 to 76, in files of earlier releases of transformers: no weight


@dataclass(frozen=True)
class OriginalTensor:
    """One tensor of the original layout.

    `sources`: the names, in the part's own file, of what it is made of, one after the other along the first axis. A
    `convolution` is 1 × 1 where the source is a linear layer.
    """

    name: str
    sources: tuple[str, ...]
    form: Literal["same", "transposed", "convolution"] = "same"


def name_unet_tensors(unet: Mapping[str, Any], names: Iterable[str]) -> Iterator[OriginalTensor]:
    """Of a UNet2DConditionModel with this config: its tensors `names` in the original layout.

    Raises UserError for one that has no place there.
    """
    modules = dict(_list_unet_modules(unet))
    return (OriginalTensor(_rename("unet", name, modules), (name,)) for name in names)


def name_vae_tensors(vae: Mapping[str, Any], names: Iterable[str]) -> Iterator[OriginalTensor]:
    """Of an AutoencoderKL. Raises UserError as `name_unet_tensors` does."""
    modules = dict(_list_vae_modules(vae))
    for name in names:
        original = _rename("vae", name, modules)
        is_convolution = ".attn_1." in original and ".norm." not in original and name.endswith(".weight")
        yield OriginalTensor(original, (name,), "convolution" if is_convolution else "same")


def name_text_tensors(text_encoder: Mapping[str, Any], names: Iterable[str]) -> Iterator[OriginalTensor]:
    """Of a CLIPTextModel, with projection or without. Raises UserError as `name_unet_tensors` does."""
    by_plain_name = {name.removeprefix("text_model."): name for name in names}  # without it since transformers 5.6
    by_plain_name.pop(_POSITIONS, None)
    if not is_open_clip(text_encoder):
        for plain, name in by_plain_name.items():
            yield OriginalTensor(f"transformer.text_model.{plain}", (name,))
        return
    modules = dict(_list_open_clip_modules(text_encoder))
    for plain, name in by_plain_name.items():
        layer, _, projection = plain.partition(".self_attn.")
        if projection in ("k_proj.weight", "k_proj.bias", "v_proj.weight", "v_proj.bias"):
            continue  # comes with its queries
        if projection in ("q_proj.weight", "q_proj.bias"):
            kind = projection.removeprefix("q_proj.")
            joined = [by_plain_name[f"{layer}.self_attn.{letter}_proj.{kind}"] for letter in "qkv"]
            yield OriginalTensor(f"model.{modules[f'{layer}.self_attn.q_proj']}_{kind}", tuple(joined))
            continue
        form: Literal["same", "transposed"] = "transposed" if plain == "text_projection.weight" else "same"
        yield OriginalTensor(f"model.{_rename('text_encoder', plain, modules)}", (name,), form)


def is_open_clip(text_encoder: Mapping[str, Any]) -> bool:
    """Whether the text encoder with this config is OpenCLIP's, as in Stable Diffusion 2 and SDXL's second one: OpenAI's
    has its own approximation of GELU."""
    return text_encoder.get("hidden_act", "quick_gelu") != "quick_gelu"


def _rename(part: str, name: str, modules: Mapping[str, str]) -> str:
    """`name`, of which the longest beginning that is a module is exchanged."""
    module, rest = name, ""
    while module and module not in modules:
        module, _, last = module.rpartition(".")
        rest = f".{last}{rest}"
    if not module:
        raise UserError(f"{part}: {name} has no place in the original layout; export a folder, with --out")
    return modules[module] + rest


def _list_unet_modules(unet: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Modules by diffusers' names, and the original's."""
    down, up = unet["down_block_types"], unet["up_block_types"]
    last = len(down) - 1
    layers = unet.get("layers_per_block", 2)
    layers = [layers] * len(down) if isinstance(layers, int) else list(layers)
    yield from {
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "add_embedding.linear_1": "label_emb.0.0",
        "add_embedding.linear_2": "label_emb.0.2",
        "conv_in": "input_blocks.0.0",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
        "mid_block.attentions.0": "middle_block.1",
    }.items()
    yield from _list_layers("mid_block.resnets.0", "middle_block.0", _UNET_RESNET)
    yield from _list_layers("mid_block.resnets.1", "middle_block.2", _UNET_RESNET)
    number = 1
    for level, kind in enumerate(down):
        for layer in range(layers[level]):
            yield from _list_layers(f"down_blocks.{level}.resnets.{layer}", f"input_blocks.{number}.0", _UNET_RESNET)
            if "CrossAttn" in kind:
                yield f"down_blocks.{level}.attentions.{layer}", f"input_blocks.{number}.1"
            number += 1
        if level < last:
            yield f"down_blocks.{level}.downsamplers.0.conv", f"input_blocks.{number}.0.op"
            number += 1
    number = 0
    for level, kind in enumerate(up):
        has_attention = "CrossAttn" in kind
        for layer in range(layers[last - level] + 1):
            yield from _list_layers(f"up_blocks.{level}.resnets.{layer}", f"output_blocks.{number}.0", _UNET_RESNET)
            if has_attention:
                yield f"up_blocks.{level}.attentions.{layer}", f"output_blocks.{number}.1"
            number += 1
        # The convolution on the larger side belongs to the level's last block.
        yield f"up_blocks.{level}.upsamplers.0.conv", f"output_blocks.{number - 1}.{1 + has_attention}.conv"


def _list_vae_modules(vae: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield from ((name, name) for name in ("quant_conv", "post_quant_conv"))
    levels, layers = len(vae["block_out_channels"]), vae.get("layers_per_block", 1)
    for side, block, sampler in (("encoder", "down", "downsample"), ("decoder", "up", "upsample")):
        yield f"{side}.conv_in", f"{side}.conv_in"
        yield f"{side}.conv_norm_out", f"{side}.norm_out"
        yield f"{side}.conv_out", f"{side}.conv_out"
        for number in (0, 1):
            middle = f"{side}.mid_block.resnets.{number}"
            yield from _list_layers(middle, f"{side}.mid.block_{number + 1}", _VAE_RESNET)
        yield from _list_layers(f"{side}.mid_block.attentions.0", f"{side}.mid.attn_1", _VAE_ATTENTION)
        for level in range(levels):
            ours = f"{side}.{block}_blocks.{level}"
            theirs = f"{side}.{block}.{level if side == 'encoder' else levels - 1 - level}"
            for layer in range(layers + (side == "decoder")):
                yield from _list_layers(f"{ours}.resnets.{layer}", f"{theirs}.block.{layer}", _VAE_RESNET)
            yield f"{ours}.{sampler}rs.0.conv", f"{theirs}.{sampler}.conv"


def _list_open_clip_modules(text_encoder: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield from _OPEN_CLIP.items()
    for number in range(text_encoder["num_hidden_layers"]):
        ours, theirs = f"encoder.layers.{number}", f"transformer.resblocks.{number}"
        yield from _list_layers(ours, theirs, _OPEN_CLIP_LAYER)


def _list_layers(ours: str, theirs: str, layers: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    return ((f"{ours}.{layer}", f"{theirs}.{original}") for layer, original in layers.items())
