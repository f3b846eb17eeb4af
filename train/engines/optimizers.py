"""The optimizers by their names in configs/optimizers.py, and the state that torch keeps for each parameter."""

from collections.abc import Iterable

import torch
from torch.optim import AdamW, Optimizer

from configs.schema import RunConfig


def _make_adamw(parameters: Iterable[torch.nn.Parameter], config: RunConfig) -> Optimizer:
    return AdamW(
        parameters,
        lr=config.lr,
        betas=config.optimizer.betas,
        eps=config.optimizer.eps,
        weight_decay=config.optimizer.weight_decay,
        fused=True,  # on a CPU, too, where it takes a ninth of the time
    )


FACTORIES = {"adamw": _make_adamw}


def make_optimizer(parameters: Iterable[torch.nn.Parameter], config: RunConfig) -> Optimizer:
    """The optimizer that `config` names, with its settings; `config.lr` until a schedule sets another rate."""
    return FACTORIES[config.optimizer.name](parameters, config)


def ensure_state(optimizer: Optimizer, parameter: torch.Tensor, keys: tuple[str, ...]) -> None:
    """Make the state of `parameter` where there is none: torch makes it at the first update, and a save before that,
    or a load, needs it now."""
    if optimizer.state.get(parameter):
        return
    # fused kernels read the count on the device; the others read it on the CPU
    device = parameter.device if optimizer.defaults.get("fused") else "cpu"
    count = torch.zeros((), dtype=torch.float32, device=device)
    optimizer.state[parameter] = {"step": count} | {key: torch.zeros_like(parameter.data) for key in keys}


def count_updates(optimizer: Optimizer, parameter: torch.Tensor) -> int:
    """Updates that `parameter` has had; its state must be there."""
    return int(optimizer.state[parameter]["step"])


def set_update_count(optimizer: Optimizer, parameter: torch.Tensor, updates: int) -> None:
    """Let `parameter`, whose state must be there, have had `updates` updates: AdamW corrects its bias by them."""
    optimizer.state[parameter]["step"].fill_(updates)
