"""The frozen parts of a pipeline, loaded when somebody needs them: what is cached needs none."""

from pathlib import Path
from typing import Any, Self

import torch

from configs.model_folder import find_variant
from configs.pipelines import find_weights_name
from configs.schema import RunConfig
from store.encodings.family import digest_files
from train.engines.base import DTYPES
from train.models.parts import freeze_part, load_part


class FrozenPart:
    """A part in its folder, its weights of `variant` where it has such. `options`: those of `load_part`, of which one
    is its dtype."""

    def __init__(self, part_class: Any, folder: Path, device: torch.device, variant: str | None, **options: Any):
        self.part_class, self.folder, self.device = part_class, folder, device
        self.variant = find_variant(folder, find_weights_name(folder.name), variant)
        self.options = {"variant": self.variant} | options
        self._part: Any = None
        self._spared = False

    @classmethod
    def for_text(cls, config: RunConfig, part_class: Any, folder: Path, device: torch.device) -> Self:
        """A text encoder, in the dtype of the passes; loaded now where the run does not cache what it makes. Raises
        UserError where it is not whole."""
        options = {"dtype": DTYPES[config.precision], "ignore_mismatched_sizes": True}  # else transformers names none
        part = cls(part_class, folder, device, config.variant, **options)
        if config.data.cached != "all":
            part.load("to train")
        return part

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
        facts = {"weights": weights, "dtype": str(dtype), "rounding": rounding}
        return facts if self.variant is None else facts | {"variant": self.variant}


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
