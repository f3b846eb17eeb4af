"""A part's weights, read from its safetensors by ranges, so that a rank holds no second copy of what it loads."""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError, safe_open

from configs.errors import UserError
from configs.model_folder import find_variant, list_weight_names
from train.models.parts import CURE, check_finite, check_whole

_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class _Stored:
    """Where a tensor lies."""

    file: FileIO
    begin: int  # its first byte in the file
    dtype: torch.dtype
    shape: tuple[int, ...]


class PartWeights:
    """The weights of the part in `folder`, of `variant` if that is given and there, whose names and shapes are those of
    `module` (on torch's meta device, say).

    Read with pread, never mapped: mapped pages would count as the process's own, and a file that shrinks under a
    mapping kills it. Raises UserError where a file is damaged, or a weight is missing or has another shape.
    """

    def __init__(self, folder: Path, module: torch.nn.Module, variant: str | None = None):
        self.folder = folder
        own = find_variant(folder, SAFETENSORS_WEIGHTS_NAME, variant)
        self._name, self._index_name = list_weight_names(SAFETENSORS_WEIGHTS_NAME, own)
        self._stored = self._read_headers()
        shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
        shared = [(name, self._stored[name].shape, shape) for name, shape in shapes.items() if name in self._stored]
        check_whole(folder, [*(shapes.keys() - self._stored.keys())], [each for each in shared if each[1] != each[2]])
        self.sizes = {name: math.prod(shape) for name, shape in shapes.items()}

    def read(self, name: str, offset: int, length: int) -> torch.Tensor:
        """Elements [offset, offset + length) of the flattened parameter: 1-D, fp32, on the CPU.

        Raises UserError where one is not finite, or the file ends before.
        """
        stored = self._stored[name]
        values = torch.empty(length, dtype=stored.dtype)
        rest = values.view(torch.uint8).numpy().data
        position = stored.begin + offset * stored.dtype.itemsize
        while rest:
            count = os.preadv(stored.file.fileno(), [rest[: 1 << 30]], position)
            if count == 0:
                raise self._refusal(f"{name} is cut off")
            rest, position = rest[count:], position + count
        check_finite(self.folder, [] if torch.isfinite(values).all() else [name])
        return values.float()

    def _read_headers(self) -> dict[str, _Stored]:
        """Every tensor of every file."""
        stored: dict[str, _Stored] = {}
        for path in self._find_files():
            try:
                stored |= _read_header(path)
            except (SafetensorError, FileNotFoundError) as error:
                raise self._refusal(error) from error
        return stored

    def _find_files(self) -> list[Path]:
        index = self.folder / self._index_name  # says which file holds what, where there are several
        if not index.exists():
            return [self.folder / self._name]
        try:
            names = set(json.loads(index.read_text())["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise self._refusal(f"{self._index_name}: {error}") from error
        return [self.folder / name for name in sorted(names)]

    def _refusal(self, problem: object) -> UserError:
        return UserError(f"{self.folder}: does not load ({' '.join(str(problem).split())}); {CURE}")


def _read_header(path: Path) -> dict[str, _Stored]:
    """The tensors in one file, which stays open. Raises SafetensorError where it is none, or not whole, or where their
    numbers are of a kind that is not trained."""
    file = FileIO(path)
    file.read(1)  # the machine's trouble raises here; the library hides what it was
    with safe_open(path, framework="pt"):
        pass  # the library has looked: all tensors lie in the file, one after the other to its end
    length = int.from_bytes(os.pread(file.fileno(), 8, 0), "little")
    header: Mapping[str, Any] = json.loads(os.pread(file.fileno(), length, 8))
    stored = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if entry["dtype"] not in _DTYPES:
            raise SafetensorError(f"{path.name}: {name} is {entry['dtype']}, not one of {', '.join(_DTYPES)}")
        begin = 8 + length + entry["data_offsets"][0]
        stored[name] = _Stored(file, begin, _DTYPES[entry["dtype"]], tuple(entry["shape"]))
    return stored
