"""The optimizers by their names in configs/optimizers.py: how each is made, updates, and keeps its states."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch.optim import Adafactor, AdamW, Optimizer

from configs.optimizers import OPTIMIZERS, check_package
from configs.schema import RunConfig
from train.engines.optimizer_values import BlockwiseValues, Fp32Values

Groups = list[dict[str, Any]]  # as torch has them: parameters, and what differs for these
Entries = dict[str, Any]  # what a library keeps of one parameter in `optimizer.state`, with `step`, its updates


@dataclass(frozen=True)
class OptimizerSpec:
    """What is told apart by an optimizer's name, here only."""

    make: Callable[[Groups, RunConfig], Optimizer]
    make_entries: Callable[[Optimizer, torch.Tensor], Entries]  # as the library would at the first update
    find_values: Callable[[Entries, str], Fp32Values | BlockwiseValues]  # under a name in configs/optimizers.py


def _make_adamw(groups: Groups, config: RunConfig) -> Optimizer:
    return AdamW(
        groups,
        lr=config.lr,
        betas=config.optimizer.betas,
        eps=config.optimizer.eps,
        weight_decay=config.optimizer.weight_decay,
        fused=True,  # on a CPU, too, where it takes a ninth of the time
    )


def _make_adamw_entries(_: Optimizer, parameter: torch.Tensor) -> Entries:
    count = torch.zeros((), dtype=torch.float32, device=parameter.device)  # where the fused kernel reads it
    return {"step": count} | {key: torch.zeros_like(parameter.data) for key in OPTIMIZERS["adamw"].states}


def _make_adamw_8bit(groups: Groups, config: RunConfig) -> Optimizer:
    """bitsandbytes' kernels are compiled for GPUs and CPUs, and take any number of elements. torchao compiles an update
    for every shape of a parameter, and keeps fp32 moments where 256 does not divide it."""
    from bitsandbytes.optim.adamw import AdamW8bit

    made: Optimizer = AdamW8bit(
        groups,
        lr=config.lr,
        betas=config.optimizer.betas,
        eps=config.optimizer.eps,
        weight_decay=config.optimizer.weight_decay,
        min_8bit_size=OPTIMIZERS["adamw_8bit"].smallest,
    )
    return made


def _make_adamw_8bit_entries(optimizer: Any, parameter: torch.Tensor) -> Entries:
    """As Optimizer2State.init_state, which wants to find the parameter in its group; ZeRO 3 puts it there for the time
    of an update only."""
    is_small = parameter.numel() < (OPTIMIZERS["adamw_8bit"].smallest or 0)
    dtype = torch.float32 if is_small else torch.uint8
    entries: Entries = {"step": 0}
    for number, qmap in ((1, "dynamic"), (2, "udynamic")):
        entries[f"state{number}"] = torch.zeros_like(parameter.data, dtype=dtype)
        if dtype == torch.uint8:
            blocks = -(-parameter.numel() // 256)
            optimizer.name2qmap[qmap] = optimizer.name2qmap[qmap].to(parameter.device)
            entries[f"qmap{number}"] = optimizer.name2qmap[qmap]
            entries[f"absmax{number}"] = torch.zeros(blocks, dtype=torch.float32, device=parameter.device)
    return entries


def _find_8bit_values(entries: Entries, key: str) -> Fp32Values | BlockwiseValues:
    number = {"exp_avg": 1, "exp_avg_sq": 2}[key]
    values = entries[f"state{number}"]
    if values.dtype == torch.float32:
        return Fp32Values(values)
    return BlockwiseValues(values, entries[f"absmax{number}"], entries[f"qmap{number}"])


def _make_adafactor(groups: Groups, config: RunConfig) -> Optimizer:
    return Adafactor(
        groups,
        lr=config.lr,
        beta2_decay=config.optimizer.beta2_decay,
        d=config.optimizer.clip_threshold,
        weight_decay=config.optimizer.weight_decay,
    )


def _make_adafactor_entries(_: Optimizer, parameter: torch.Tensor) -> Entries:
    entries: Entries = {"step": torch.zeros(())}
    if parameter.dim() < 2:
        return entries | {"variance": torch.zeros_like(parameter.data)}
    *others, rows, columns = parameter.shape
    shapes = {"row_var": (*others, rows, 1), "col_var": (*others, 1, columns)}
    return entries | {key: parameter.new_zeros(shape) for key, shape in shapes.items()}


def _find_own_values(entries: Entries, key: str) -> Fp32Values:
    return Fp32Values(entries[key])


SPECS = {
    "adamw": OptimizerSpec(_make_adamw, _make_adamw_entries, _find_own_values),
    "adamw_8bit": OptimizerSpec(_make_adamw_8bit, _make_adamw_8bit_entries, _find_8bit_values),
    "adafactor": OptimizerSpec(_make_adafactor, _make_adafactor_entries, _find_own_values),
}


def make_optimizer(parameters: Iterable[torch.nn.Parameter], config: RunConfig) -> Optimizer:
    """The optimizer that `config` names, with its settings; `config.lr` until a schedule sets another rate.

    `parameters` have the dimensions that the model gave them: by these some are left without weight decay. Raises
    UserError where what makes it is not installed.
    """
    check_package(config)
    every = list(parameters)
    groups: Groups = [{"params": every}]
    if config.optimizer.decay == "matrices":
        matrices = [parameter for parameter in every if parameter.dim() > 1]
        vectors = [parameter for parameter in every if parameter.dim() < 2]
        groups = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
    return SPECS[config.optimizer.name].make([group for group in groups if group["params"]], config)


@torch.no_grad()
def update_scaled(
    optimizer: Optimizer,
    gradients: list[torch.Tensor],
    scale: torch.Tensor,
    found_inf: torch.Tensor,
    *,
    takes_scale: bool,
) -> None:
    """Update by `gradients`, all that the optimizer's parameters have, divided by `scale`; change nothing where
    `found_inf` is not 0. Both are on the device.

    torch's fused AdamW takes them as they are (`takes_scale`), as torch's own GradScaler hands them over. For every
    other optimizer the host waits for the verdict, and the gradients are divided before.
    """
    if takes_scale:
        optimizer.grad_scale, optimizer.found_inf = scale, found_inf  # type: ignore[attr-defined]
        optimizer.step()
    elif not found_inf:
        torch._foreach_div_(gradients, scale)
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if not parameter.numel():  # of a rank that holds no row of it: kernels may want at least one element
                    parameter.grad = None
        optimizer.step()
