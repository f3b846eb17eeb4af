"""Weights in the dtype of an export."""

import torch

from configs.errors import UserError


def cast_weight(name: str, values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """`values` rounded to `dtype`. Raises UserError where a finite one becomes infinite, as those above 65,504 do in
    fp16: a pipeline that draws black pictures would say nothing of why."""
    cast = values.to(dtype)
    overflows = torch.isfinite(values) & ~torch.isfinite(cast)
    if overflows.any():
        largest = float(values[overflows].abs().max())
        most = torch.finfo(dtype).max
        raise UserError(
            f"{name}: holds {largest:.6g}, and {str(dtype).removeprefix('torch.')} ends at {most:.6g}; write "
            "export_dtype: bf16 or fp32 (lockstep export --dtype)"
        )
    return cast
