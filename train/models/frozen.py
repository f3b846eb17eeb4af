"""The frozen parts of a pipeline, loaded when somebody needs them: what is cached needs none."""

from pathlib import Path
from typing import Any

import torch

from store.encodings.family import digest_files
from train.models.parts import freeze_part, load_part


class FrozenPart:
    """A part in its folder. `options`: those of `load_part`, of which one is its dtype."""

    def __init__(self, part_class: Any, folder: Path, device: torch.device, **options: Any):
        self.part_class, self.folder, self.device, self.options = part_class, folder, device, options
        self._part: Any = None
        self._spared = False

    def load(self, reason: str) -> Any:
        """The module, on the device; `reason` is told where it had been spared. Raises UserError where it is not
        whole."""
        if self._part is None:
            if self._spared:
                print(f"loading {self.folder.name}, which the cache had spared, {reason}", flush=True)
            self._part = freeze_part(load_part(self.part_class, self.folder, **self.options), self.device)
        return self._part

    def spare(self) -> None:
        """Give back its memory, as what it makes is cached. It is loaded again for whoever needs it all the same."""
        self._part, self._spared = None, True

    def describe(self, tf32: bool) -> dict[str, str]:
        """All that decides what it makes of an input, as facts of a `Family`. Raises OSError."""
        dtype = self.options.get("torch_dtype") or self.options["dtype"]  # the two libraries' names for it
        weights = digest_files(self.folder, "config.json", "*.safetensors", "*.safetensors.index.json")
        rounding = "TF32" if tf32 and dtype == torch.float32 else "none"
        return {"weights": weights, "dtype": str(dtype), "rounding": rounding}


def merge_rows(made: torch.Tensor | None, kept: torch.Tensor | None, is_kept: torch.Tensor | None) -> torch.Tensor:
    """The rows of a micro-batch, of which some came from the cache and the others were just made; `is_kept`, (m,), says
    which, and is None where all are of one kind."""
    if made is None or kept is None or is_kept is None:
        rows = kept if made is None else made
        assert rows is not None
        return rows
    merged = torch.empty((len(is_kept), *kept.shape[1:]), dtype=kept.dtype, device=kept.device)
    merged[is_kept], merged[~is_kept] = kept, made
    return merged
