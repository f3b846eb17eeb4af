"""Adapters on a model: what they begin with, and that they are put on the denoiser of any model in one way."""

from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel

from configs.errors import UserError
from configs.schema import RunConfig
from train.engines.base import load_parameters
from train.models import load_model
from train.models.base import DiffusionModel

EVERYWHERE = ["to_q", "to_out.0", "conv1", "proj_in", "time_emb_proj", "conv_in"]


@pytest.fixture(params=["pipeline_folder", "pipeline_xl_folder"])
def folder(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


def load(folder: Path, lora: dict[str, object], **changes: object) -> DiffusionModel:
    settings = {"precision": "fp32", "lora": lora} | changes
    config = RunConfig(name="a", model=str(folder), data={"images": "-", "cache": "all"}, **settings)
    return load_model(config, folder, torch.device("cpu"))


def read_all(model: DiffusionModel) -> dict[str, torch.Tensor]:
    return {name: model.weights.read(name, 0, size) for name, size in model.weights.sizes.items()}


@pytest.mark.parametrize("lora", [{"targets": EVERYWHERE}, {"targets": EVERYWHERE, "dora": True}], ids=["lora", "dora"])
def test_a_denoiser_with_new_adapters_is_the_base_model(folder: Path, lora: dict[str, object]) -> None:
    """LoRA to the bit: B is 0. DoRA but for the rounding of its magnitudes."""
    model = load(folder, lora)
    load_parameters(model.denoiser, model.weights, torch.float32, torch.device("cpu"))
    base = UNet2DConditionModel.from_pretrained(folder, subfolder="unet")
    text = torch.randn(2, 77, base.config.cross_attention_dim)
    inputs = torch.randn(2, 4, 8, 8), torch.tensor([3, 700]), text
    told = {"text_embeds": torch.randn(2, 40), "time_ids": torch.ones(2, 6)}  # of which SDXL's alone takes notice
    with torch.no_grad():
        answer, expected = (unet(*inputs, added_cond_kwargs=told).sample for unet in (model.denoiser, base))
    if lora.get("dora"):
        torch.testing.assert_close(answer, expected, rtol=1e-5, atol=1e-5)
    else:
        torch.testing.assert_close(answer, expected, rtol=0, atol=1e-6)  # oneDNN rounds by where weights lie
    own = {name.replace(".base_layer.", "."): value for name, value in model.denoiser.named_parameters()}
    for name, value in base.named_parameters():
        assert torch.equal(own[name], value), name


def test_what_is_drawn_belongs_to_the_seed_and_the_name(folder: Path) -> None:
    lora = {"rank": 3, "targets": EVERYWHERE, "dora": True}
    model, again, other = (load(folder, lora, seed=seed) for seed in (5, 5, 6))
    drawn, same, others = map(read_all, (model, again, other))
    adapters = {name: value for name, value in drawn.items() if ".lora_" in name}
    assert adapters.keys() == {name for name, p in model.denoiser.named_parameters() if p.requires_grad}
    for name, values in drawn.items():
        assert torch.equal(values, same[name])
        if ".lora_A." in name:
            bound = model.denoiser.get_parameter(name)[0].numel() ** -0.5
            assert bound * 0.9 < values.abs().max() <= bound, "as peft draws it"
            assert not torch.equal(values, others[name])
        elif ".lora_B." in name:
            assert not values.any()
        else:
            assert torch.equal(values, others[name]), "what is not drawn"
    firsts = [values[0].item() for name, values in adapters.items() if ".lora_A." in name]
    assert len(set(firsts)) == len(firsts) > 5, "each parameter has a draw of its own"


def test_a_part_of_a_parameter_is_read_as_the_whole_is(folder: Path) -> None:
    model = load(folder, {"rank": 3, "targets": EVERYWHERE, "dora": True}, precision="bf16")
    for name, whole in read_all(model).items():
        cut = len(whole) // 3
        parts = [model.weights.read(name, 0, cut), model.weights.read(name, cut, len(whole) - cut)]
        assert torch.equal(torch.cat(parts), whole), name


def test_the_draw_stays_what_it_was(pipeline_folder: Path) -> None:
    """Golden: another numpy, or a change of ours, would begin every run with other adapters."""
    model = load(pipeline_folder, {"rank": 2}, seed=7)
    name = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.default.weight"
    assert model.weights.read(name, 0, 3).tolist() == [-0.09818801283836365, 0.03576634079217911, -0.17517659068107605]


def test_magnitudes_are_the_rows_lengths_as_the_passes_see_them(pipeline_folder: Path) -> None:
    """peft takes them of the weight that it is put on."""
    model = load(pipeline_folder, {"targets": EVERYWHERE, "dora": True}, precision="bf16")
    load_parameters(model.denoiser, model.weights, torch.bfloat16, torch.device("cpu"))
    magnitudes = [name for name in model.weights.sizes if ".lora_magnitude_vector." in name]
    for name in magnitudes:
        layer = model.denoiser.get_submodule(name.partition(".lora_")[0])
        norms = layer.base_layer.weight.flatten(1).norm(dim=1)
        assert torch.equal(layer.lora_magnitude_vector["default"].weight.flatten(), norms), name
    assert magnitudes


def test_a_pattern_that_fits_no_layer_is_refused(pipeline_folder: Path) -> None:
    with pytest.raises(UserError, match=r"lora\.targets: to_z is no linear or convolution layer"):
        load(pipeline_folder, {"targets": ["to_q", "to_z"]})
