"""While a UNet is loaded a rank's memory grows to what stays: no second copy of the weights is held."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel

from tests.engines import SETTINGS, SIXTEEN_BITS
from tests.ranks import run_ranks

PROGRAM = Path(__file__).with_name("load_unet.py")


def make_unet(folder: Path, widths: tuple[int, ...]) -> Path:
    """Stable Diffusion's layout in `widths`; all weights are 0, in a file that takes no room."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(64, block_out_channels=widths, cross_attention_dim=768, attention_head_dim=8)
    unet.save_config(folder / "unet")
    header, end = {}, 0
    for name, tensor in unet.state_dict().items():
        size = 4 * tensor.numel()
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    with open(folder / "unet" / "diffusion_pytorch_model.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return folder


def peak_above_what_stays(folder: Path, ranks: int, engine: str, precision: str) -> float:
    """Of the rank that has most, in multiples of the UNet's fp32 size."""
    lines = run_ranks(ranks, PROGRAM, folder, engine, precision).splitlines()
    found = [json.loads(line) for line in lines if line.startswith('{"elements"')]
    assert len(found) == ranks
    for one in found:
        assert one["after"] - one["before"] > 4 * one["elements"] / ranks, "it is loaded, and measured"
    return max((one["peak"] - one["after"]) / (4 * one["elements"]) for one in found)


@pytest.fixture(scope="module")
def unet_100m(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_unet(tmp_path_factory.mktemp("unet"), (128, 256, 384, 384))


@pytest.fixture(scope="module")
def unet_400m(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_unet(tmp_path_factory.mktemp("unet"), (224, 448, 864, 864))


@pytest.mark.parametrize(
    ("ranks", "engine", "precision"),
    [(1, "zero0", "fp32"), (2, "zero1", "bf16"), (1, "zero2", "fp32"), (2, "zero3", "bf16"), (2, "reshard", "bf16")],
)
def test_loading_holds_no_second_copy(unet_100m: Path, ranks: int, engine: str, precision: str) -> None:
    assert peak_above_what_stays(unet_100m, ranks, engine, precision) <= 0.25


@pytest.mark.faults
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize(
    ("engine", "precision"), [(name, "fp32") for name in SETTINGS] + [(name, "bf16") for name in SIXTEEN_BITS]
)
def test_loading_a_large_one_holds_no_second_copy(unet_400m: Path, ranks: int, engine: str, precision: str) -> None:
    assert peak_above_what_stays(unet_400m, ranks, engine, precision) <= 0.25
