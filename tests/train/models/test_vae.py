"""The frozen VAE: in which dtype it is, in what slices it encodes, and that only frozen parts may round to TF32."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL

from configs.schema import RunConfig
from configs.solve import device_memory
from train.models import load_model
from train.models.parts import frozen_pass
from train.models.stable_diffusion import StableDiffusion
from train.models.vae import choose_vae_dtype, encode_pixels

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def one_thread() -> Iterator[None]:
    """With more, a kernel shares a micro-batch out among them, and sums in another order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("samples", "slices"), [(1, [1]), (3, [3]), (7, [7]), (8, [4, 4]), (11, [6, 5])])
def test_a_large_micro_batch_is_encoded_in_equal_slices_to_the_same_bits(
    pipeline_folder: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None, samples: int, slices: list[int]
) -> None:
    part = AutoencoderKL.from_pretrained(pipeline_folder, subfolder="vae")
    pixels = torch.randint(256, (samples, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        whole = encode_pixels(part, pixels)
        found, encode = [], part.encode
        monkeypatch.setattr(part, "encode", lambda x: found.append(len(x)) or encode(x))
        monkeypatch.setattr(device_memory, "VAE_SLICE_PIXELS", 4 * 32 * 32)
        assert torch.equal(encode_pixels(part, pixels), whole)
    assert found == slices


def test_no_slice_holds_one_sample_alone_however_large(
    pipeline_folder: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None
) -> None:
    part = AutoencoderKL.from_pretrained(pipeline_folder, subfolder="vae")
    pixels = torch.randint(256, (5, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        whole = encode_pixels(part, pixels)
        monkeypatch.setattr(device_memory, "VAE_SLICE_PIXELS", 1)
        assert torch.equal(encode_pixels(part, pixels), whole)


@pytest.mark.parametrize(
    ("precision", "force_upcast", "device", "has_bf16", "dtype"),
    [
        ("fp32", True, GPU, True, torch.float32),
        ("bf16", True, GPU, True, torch.bfloat16),
        ("fp16", True, GPU, True, torch.bfloat16),
        ("fp16", False, GPU, True, torch.bfloat16),
        ("fp16", True, GPU, False, torch.float32),
        ("fp16", False, GPU, False, torch.float16),
        ("fp16", True, CPU, True, torch.float32),
        ("bf16", True, CPU, True, torch.bfloat16),
    ],
)
def test_the_vae_is_in_bf16_wherever_the_gpu_has_it(
    monkeypatch: pytest.MonkeyPatch,
    precision: str,
    force_upcast: bool,
    device: torch.device,
    has_bf16: bool,
    dtype: torch.dtype,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bf16)
    config = RunConfig(name="a", model="m", data={"images": "-"}, precision=precision)
    assert choose_vae_dtype(config, force_upcast, device) == dtype


def allowed() -> tuple[bool, bool]:
    return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32


def test_only_frozen_passes_may_round_to_tf32(pipeline_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen from inside the parts, and put back, also after a pass that failed."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    config = RunConfig(name="a", model=str(pipeline_folder), data={"images": "-"}, precision="fp32")
    model = load_model(config, pipeline_folder, CPU)
    assert isinstance(model, StableDiffusion)
    assert (model.tf32, model.vae.tf32) == (False, False), "on a CPU nothing is rounded"
    model.tf32 = model.vae.tf32 = True
    seen = []
    for part in (model.vae.module.encoder, model.vae.module.decoder, model.text_encoder):
        part.register_forward_pre_hook(lambda *_: seen.append((allowed(), torch.is_grad_enabled())))
    latents = model.latents(
        {"pixels": torch.zeros(1, 3, 32, 32, dtype=torch.uint8), "posterior": torch.zeros(1, 4, 8, 8)}
    )
    model.decode(latents)
    model.condition({"tokens": torch.zeros(1, 1, 77, dtype=torch.long)})
    assert seen == [((True, True), False)] * 3
    assert allowed() == (False, False)
    with pytest.raises(RuntimeError), frozen_pass(tf32=True):
        raise RuntimeError
    assert allowed() == (False, False)
    with frozen_pass(tf32=False):
        assert allowed() == (False, False)
