"""ZeRO 3's linear layer, rounded as in every other stage.

Under ZeRO 3 DeepSpeed puts a function of its own in the place of `torch.nn.functional.linear`, for autograd would keep
gathered weights alive through torch's. Its forward rounds the product before it adds the bias; torch's rounds once. In
bf16 that changes a loss by 1e-4, so that a run would not continue with the same loss on another stage.
"""

import torch
from deepspeed.runtime.zero.linear import LinearFunctionForZeroStage3

_LINEAR = torch.nn.functional.linear  # torch's own: DeepSpeed replaces it when its first ZeRO 3 engine is made


def round_as_torch() -> None:
    """Let DeepSpeed's function compute its output as torch does. What it keeps for backward stays its own."""
    LinearFunctionForZeroStage3.forward = staticmethod(_forward)


def _forward(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    return _LINEAR(x, weight, bias)
