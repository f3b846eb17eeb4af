"""The parts of a pipeline folder, loaded by the libraries' own from_pretrained, and refused where not whole."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from configs.errors import UserError
from configs.schema import RunConfig

CURE = "fetch the model again"
_SHOWN = 5  # tensors that one sentence names


def load_part(part_class: Any, path: Path, **options: Any) -> Any:
    """The model in `path`, whole and finite, from safetensors only; `options` go to from_pretrained.

    Pass a dtype always: left to themselves, fp16 files give an fp16 text encoder and an fp32 UNet. Raises UserError for
    every tensor that is missing, has another shape than its config says, or is not finite: the libraries put random
    numbers in the place of the first two.
    """
    for file in path.glob("*.safetensors"):
        with open(file, "rb") as opened:
            opened.read(1)  # the machine's trouble raises here; the libraries hide what it was
    try:
        part, info = part_class.from_pretrained(path, use_safetensors=True, output_loading_info=True, **options)
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"{path}: does not load ({' '.join(str(error).split())}); {CURE}") from error
    check_whole(path, info["missing_keys"], info["mismatched_keys"])
    check_finite(path, [name for name, tensor in part.state_dict().items() if not torch.isfinite(tensor).all()])
    return part


def check_whole(
    path: Path, missing: Sequence[str], mismatched: Sequence[tuple[str, Sequence[int], Sequence[int]]]
) -> None:
    """Raise UserError where the part in `path` lacks weights, or has some of another shape: (name, has, wants)."""
    if missing:
        raise UserError(f"{path}: its weights lack {_join(sorted(missing))}; {CURE}")
    if mismatched:
        shapes = [f"{name} ({tuple(has)}, not {tuple(wants)})" for name, has, wants in mismatched]
        raise UserError(f"{path}: has tensors of another shape than its config says: {_join(sorted(shapes))}; {CURE}")


def check_finite(path: Path, not_finite: Sequence[str]) -> None:
    """Raise UserError where weights of the part in `path` are not finite, naming them."""
    if not_finite:
        raise UserError(f"{path}: not finite are {_join(not_finite)}; {CURE}")


def check_trainable(path: Path, part: torch.nn.Module) -> None:
    """Raise UserError where the part in `path` draws at random while it is trained, or has tensors that are no weights:
    a sample's draws are its position's (contract 2), and what is no weight is in no checkpoint."""
    config = path / "config.json"
    for name, module in part.named_modules():
        if isinstance(module, torch.nn.Dropout) and module.p > 0:
            raise UserError(
                f"{config}: {name} drops values with p = {module.p:g}, and only 0 is trained; write dropout: 0"
            )
    if buffers := [name for name, _ in part.named_buffers()]:
        raise UserError(f"{config}: {_join(buffers)} are tensors and no weights, which this version does not train")


def freeze_part(part: Any, device: torch.device) -> Any:
    """The same model on `device`, for inference alone."""
    return part.requires_grad_(False).eval().to(device)


def may_round(config: RunConfig, device: torch.device) -> bool:
    """Whether frozen parts may round fp32 products to TF32, see `frozen_pass`."""
    return device.type == "cuda" and not config.deterministic


@contextmanager
def frozen_pass(tf32: bool) -> Iterator[None]:
    """Around a pass of a frozen part: no graph, and with `tf32` fp32 products that a GPU rounds to TF32's 10 bits.

    What is trained runs outside of it, where fp32 means fp32. On a CPU leave `tf32` off: torch takes it as leave to
    round there too, on processors that can.
    """
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    if tf32:
        matmul.allow_tf32 = cudnn.allow_tf32 = True
    try:
        with torch.no_grad():
            yield
    finally:
        if tf32:
            matmul.allow_tf32, cudnn.allow_tf32 = before


def _join(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
