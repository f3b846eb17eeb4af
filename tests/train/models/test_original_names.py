"""The names of the original layout, for the sizes that people train: those that the released files have, and such that
diffusers' own reader finds every tensor again. On torch's meta device: names and shapes, without values."""

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders import single_file_utils
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from configs.errors import UserError
from configs.known_models import SD1, SD2, SDXL, KnownModel
from train.models.original_names import (
    OriginalTensor,
    name_text_tensors,
    name_unet_tensors,
    name_vae_tensors,
)

CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
OPEN_CLIP_H = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16}
OPEN_CLIP_G = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20}
Tensors = dict[str, torch.Tensor]


def convert(part: torch.nn.Module, original: list[OriginalTensor]) -> Tensors:
    """The part's tensors as one file of the original layout would hold them."""
    state, found = part.state_dict(), {}
    for tensor in original:
        values = torch.cat([state[source] for source in tensor.sources])
        values = values[:, :, None, None] if tensor.form == "convolution" else values
        found[tensor.name] = values.T if tensor.form == "transposed" else values
    assert sum(len(tensor.sources) for tensor in original) == len(state), "every tensor is there, once"
    assert len(found) == len(original), "under a name of its own"
    return found


def shapes(tensors: Tensors) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


@pytest.mark.parametrize(
    ("model", "count", "known"),
    [
        (
            SD1,
            686,
            {
                "time_embed.2.weight": (1280, 1280),
                "input_blocks.1.1.proj_in.weight": (320, 320, 1, 1),
                "input_blocks.3.0.op.weight": (320, 320, 3, 3),
                "middle_block.1.transformer_blocks.0.attn2.to_k.weight": (1280, 768),
                "output_blocks.2.1.conv.weight": (1280, 1280, 3, 3),
                "output_blocks.8.2.conv.weight": (640, 640, 3, 3),
                "output_blocks.11.0.skip_connection.weight": (320, 640, 1, 1),
                "out.2.bias": (4,),
            },
        ),
        (
            SD2,
            686,
            {
                "input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight": (320, 1024),
                "input_blocks.1.1.proj_in.weight": (320, 320),
                "output_blocks.11.1.transformer_blocks.0.norm1.bias": (320,),
            },
        ),
        (
            SDXL,
            1680,
            {
                "label_emb.0.0.weight": (1280, 2816),
                "input_blocks.8.1.transformer_blocks.9.attn2.to_k.weight": (1280, 2048),
                "middle_block.2.in_layers.2.weight": (1280, 1280, 3, 3),
                "output_blocks.2.2.conv.weight": (1280, 1280, 3, 3),
                "output_blocks.8.0.skip_connection.weight": (320, 640, 1, 1),
            },
        ),
    ],
    ids=["SD 1", "SD 2", "SDXL"],
)
def test_a_unet_has_the_released_names_and_is_read_back(
    model: KnownModel, count: int, known: dict[str, tuple[int, ...]]
) -> None:
    with torch.device("meta"):
        unet = UNet2DConditionModel(**model.configs["unet"])
    original = convert(unet, list(name_unet_tensors(unet.config, unet.state_dict())))
    assert len(original) == count
    assert known.items() <= shapes(original).items()
    prefixed = {f"model.diffusion_model.{name}": tensor for name, tensor in original.items()}
    read = single_file_utils.convert_ldm_unet_checkpoint(prefixed, dict(unet.config))
    assert shapes(read) == shapes(unet.state_dict())


@pytest.mark.parametrize("names_of_2022", [False, True])
def test_the_vae_has_the_released_names_and_is_read_back(names_of_2022: bool) -> None:
    with torch.device("meta"):
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
        )
    names = list(vae.state_dict())
    if names_of_2022:
        old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
        renamed = {}
        for name in names:
            head, attention, rest = name.partition("attentions.0.")
            layer, _, kind = rest.rpartition(".")
            renamed[f"{head}{attention}{old.get(layer, layer)}.{kind}" if attention else name] = name
        tensors = [
            OriginalTensor(tensor.name, (renamed[tensor.sources[0]],), tensor.form)
            for tensor in name_vae_tensors(vae.config, renamed)
        ]
    else:
        tensors = list(name_vae_tensors(vae.config, names))
    original = convert(vae, tensors)
    known = {
        "encoder.mid.attn_1.q.weight": (512, 512, 1, 1),
        "encoder.down.2.downsample.conv.weight": (512, 512, 3, 3),
        "decoder.mid.block_2.norm1.weight": (512,),
        "decoder.up.0.block.0.nin_shortcut.weight": (128, 256, 1, 1),
        "decoder.up.3.upsample.conv.weight": (512, 512, 3, 3),
        "quant_conv.weight": (8, 8, 1, 1),
    }
    assert len(original) == 248
    assert known.items() <= shapes(original).items()
    prefixed = {f"first_stage_model.{name}": tensor for name, tensor in original.items()}
    read = single_file_utils.convert_ldm_vae_checkpoint(prefixed, dict(vae.config))
    assert shapes(read) == shapes(vae.state_dict())


@pytest.mark.parametrize(
    ("config", "model_class", "prefix", "known"),
    [
        (
            CLIP_L | {"hidden_act": "quick_gelu"},
            CLIPTextModel,
            "conditioner.embedders.0.",
            {"transformer.text_model.encoder.layers.11.mlp.fc2.weight": (768, 3072)},
        ),
        (
            OPEN_CLIP_H | {"hidden_act": "gelu"},
            CLIPTextModel,
            "cond_stage_model.",
            {
                "model.positional_embedding": (77, 1024),
                "model.transformer.resblocks.22.mlp.c_proj.bias": (1024,),
                "model.transformer.resblocks.0.attn.in_proj_weight": (3072, 1024),
            },
        ),
        (
            OPEN_CLIP_G | {"hidden_act": "gelu", "projection_dim": 1024},
            CLIPTextModelWithProjection,
            "conditioner.embedders.1.",
            {
                "model.transformer.resblocks.31.attn.in_proj_bias": (3840,),
                "model.transformer.resblocks.9.mlp.c_proj.bias": (1280,),
                "model.text_projection": (1280, 1024),
                "model.ln_final.weight": (1280,),
            },
        ),
    ],
    ids=["CLIP-L", "OpenCLIP-H", "OpenCLIP-G"],
)
def test_a_text_encoder_has_the_released_names_and_is_read_back(
    config: dict, model_class: type, prefix: str, known: dict[str, tuple[int, ...]]
) -> None:
    with torch.device("meta"):
        encoder = model_class(CLIPTextConfig(**config))
    state = encoder.state_dict()
    names = [*state, "text_model.embeddings.position_ids"]  # as files of earlier releases have
    original = convert(encoder, list(name_text_tensors(config, names)))
    assert known.items() <= shapes(original).items()
    prefixed = {prefix + name: tensor for name, tensor in original.items()}
    if "model.positional_embedding" in original:
        read = single_file_utils.convert_open_clip_checkpoint(encoder, prefixed, prefix=f"{prefix}model.")
    else:
        read = single_file_utils.convert_ldm_clip_checkpoint(prefixed)
    plain = {name.removeprefix("text_model."): tensor for name, tensor in read.items()}
    assert shapes(plain) == {name.removeprefix("text_model."): shape for name, shape in shapes(state).items()}


def test_what_has_no_place_in_the_layout_is_refused_by_name() -> None:
    with pytest.raises(UserError, match=r"unet: encoder_hid_proj\.weight has no place in the original layout; export"):
        list(name_unet_tensors(SD1.configs["unet"], ["conv_in.weight", "encoder_hid_proj.weight"]))
