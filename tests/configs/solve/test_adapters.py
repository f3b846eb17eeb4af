"""What planning knows of adapters without torch, against the layers of real UNets and what peft puts on them."""

import gc
import weakref
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel

from configs.errors import UserError
from configs.known_models import SD1, SD2, SDXL, PipelineSize
from configs.schema import LoraConfig, RunConfig
from configs.solve.adapters import ParameterCounts, count_adapters, count_parameters, select_targets
from configs.solve.device_memory import count_sample, estimate_device_memory
from configs.solve.unet_layers import list_unet_layers
from tests.configs.solve.test_activations import NESTED, TINY, Attention
from train.models.lora import add_adapters, is_adapter, list_layers

UNETS = {"SD1": SD1.configs["unet"], "SD2": SD2.configs["unet"], "SDXL": SDXL.configs["unet"]}
UNETS |= {"tiny": TINY, "nested": NESTED}


def make_unet(config: Any) -> UNet2DConditionModel:
    """Without weights."""
    with torch.device("meta"):
        return UNet2DConditionModel.from_config(dict(config))


def settings(lora: dict[str, Any], **changes: object) -> RunConfig:
    keys = {"name": "a", "model": "m", "data": {"images": "i"}, "precision": "bf16"}
    return RunConfig.model_validate(keys | {"lora": lora} | changes)


@pytest.mark.parametrize("name", UNETS)
def test_the_layers_are_those_of_a_real_unet(name: str) -> None:
    counted = list_unet_layers(UNETS[name])
    assert counted is not None
    real = list_layers(make_unet(UNETS[name]))
    assert sorted(map(str, real)) == sorted(
        str(layer).replace(f"level={layer.level}", "level=None") for layer in counted
    )


@pytest.mark.parametrize(
    ("name", "lora"),
    [
        ("SD1", {}),
        ("nested", {"rank": 64}),
        ("SD1", {"targets": "all-linear"}),
        ("tiny", {"targets": ["to_q", r"up_blocks\.\d\.resnets\.\d\.conv1", "conv_in"], "dora": True}),
        ("nested", {"targets": ["proj_in", "downsamplers.0.conv"]}),
    ],
)
def test_peft_trains_as_many_parameters_as_are_counted(name: str, lora: dict[str, Any]) -> None:
    config, layers = LoraConfig(**lora), list_unet_layers(UNETS[name])
    assert layers is not None
    targets = select_targets(config, layers)
    unet = make_unet(UNETS[name])
    add_adapters(unet, config)
    trained = {name: parameter for name, parameter in unet.named_parameters() if parameter.requires_grad}
    assert {name.partition(".lora_")[0] for name in trained} == {layer.name for layer in targets}
    assert sum(parameter.numel() for parameter in trained.values()) == count_adapters(config, targets)
    assert all(is_adapter(name) for name in trained)
    assert not list(unet.buffers()), "a checkpoint would not hold them"


def test_as_many_as_diffusers_example_has() -> None:
    """Its rank of 4 on Stable Diffusion 1.5 gives 797,184."""
    assert count_parameters(settings({"rank": 4}), SD1) == ParameterCounts(797_184, 859_520_964)


@pytest.mark.parametrize("pattern", ["attn1", "to_z", "norm1", "o_q", r"up_blocks\..*\.downsamplers.*"])
def test_a_pattern_that_fits_no_layer_is_refused_by_name(pattern: str) -> None:
    with pytest.raises(UserError, match=r"lora\.targets: .* is no linear or convolution layer") as caught:
        count_parameters(settings({"targets": ["to_q", pattern]}), SD1)
    assert pattern in str(caught.value)


def test_layers_of_another_kind_are_not_guessed() -> None:
    for change in ({"class_embed_type": "timestep"}, {"addition_embed_type": "image"}, {"time_embedding_dim": 7}):
        assert list_unet_layers(TINY | change) is None


class Kept:
    """A tensor that autograd keeps; it goes with the graph that needs it."""

    def __init__(self, tensor: torch.Tensor):
        self.tensor = tensor


def measure(config: Any, lora: LoraConfig, side: int, recomputed: bool) -> int:
    """Bytes of all storages, the parameters' apart, that one sample's forward pass keeps."""
    kept: weakref.WeakSet[Kept] = weakref.WeakSet()

    def save(tensor: torch.Tensor) -> Kept:
        one = Kept(tensor)
        kept.add(one)
        return one

    unet = make_unet(config)
    add_adapters(unet, lora)
    unet.to(torch.bfloat16).train()
    if recomputed:
        unet.enable_gradient_checkpointing()
    with torch.device("meta"), torch.autograd.graph.saved_tensors_hooks(save, lambda one: one.tensor):
        latents = torch.empty(1, 4, side, side, dtype=torch.bfloat16)
        text = torch.empty(1, 77, config["cross_attention_dim"], dtype=torch.bfloat16)
        answer = unet(latents, torch.zeros(1, dtype=torch.long), text).sample
    gc.collect()
    own = {parameter.untyped_storage()._cdata for parameter in unet.parameters()}
    storages = {storage._cdata: storage.nbytes() for storage in (one.tensor.untyped_storage() for one in kept)}
    assert answer.requires_grad
    return sum(size for key, size in storages.items() if key not in own)


@pytest.mark.parametrize(
    ("lora", "recomputed"),
    [({}, False), ({}, True), ({"rank": 128, "targets": "all-linear"}, True), ({"dora": True}, False)],
    ids=["attention", "attention-checkpointing", "all-linear-checkpointing", "dora"],
)
def test_what_is_counted_is_no_less_than_what_autograd_keeps(
    monkeypatch: pytest.MonkeyPatch, lora: dict[str, Any], recomputed: bool
) -> None:
    """And no more than half of that too much: most inputs of frozen layers are kept for others all the same."""

    def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **_: object) -> object:
        return Attention.apply(query, key, value)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", attend)
    config = settings(lora, gradient_checkpointing=recomputed, data={"images": "i", "resolution": 72})
    size = PipelineSize({}, {"unet": NESTED, "vae": SD1.configs["vae"]})
    counted, kept = count_sample(config, size), measure(NESTED, config.lora, 9, recomputed)
    assert counted is not None
    assert kept <= counted.kept * 1.001 <= 1.5 * kept


def test_a_run_with_adapters_holds_less_on_a_gpu_and_on_disk() -> None:
    from configs.solve.batch import Shape, solve_batch
    from configs.solve.hardware import Hardware

    held = {}
    for lora in ({}, None):
        config = settings(lora, batch=4, micro_batch=4, zero=1)
        device = estimate_device_memory(config, solve_batch(config, Shape(1, 1)), SDXL, Hardware())
        assert device.states is not None
        held[bool(lora is None)] = device.states / SDXL.parameters["unet"]
    assert held[True] == pytest.approx(20, rel=1e-3), "as test_memory counts a whole UNet"
    assert held[False] == pytest.approx(2 + 20 * 23_224_320 / SDXL.parameters["unet"], rel=1e-3)
