"""The seam of the engines (contract 8): training state is named fragments, whatever shards it.

What is built on fragments (averages, checkpoints, export) knows no engine, no stage and no world size.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, Self, TypedDict

import torch

from configs.schema import RunConfig
from store.run.run_dir import Attempt
from train.process_group import World

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}  # of the passes, by `precision`
WEIGHTS = "weights"  # the key of the fp32 masters, beside the optimizer's own keys


@dataclass(frozen=True)
class Fragment:
    """Elements [offset, offset + length) of the flattened parameter `name`."""

    name: str
    offset: int
    length: int


class WeightReader(Protocol):
    """The weights that a module begins with, read by ranges: a rank reads what it needs and keeps no second copy."""

    sizes: dict[str, int]  # elements of each parameter

    def read(self, name: str, offset: int, length: int) -> torch.Tensor:
        """Elements [offset, offset + length) of the flattened parameter: 1-D, fp32, on the CPU, finite.

        Raises UserError where they cannot be had.
        """


class Counters(TypedDict):
    """What a checkpoint keeps of an engine beside its fragments, under the manifest's names."""

    optimizer_step: int  # updates that were applied
    skipped_steps: int  # steps that updated nothing
    loss_scaler: dict[str, float] | None  # fp16's scale and its counters; None in another precision


class Engine(Protocol):
    """One trained module with its optimizer, and this rank's part of their state.

    All ranks make the same calls in the same order; reading and loading of values and the attributes are this rank's
    alone.
    """

    module: torch.nn.Module
    accumulation: int  # micro-batches of one step
    sizes: dict[str, int]  # elements of each trained parameter
    layout: str  # digest of `sizes`: the same under every engine, stage and world size
    layouts: dict[str, str]  # the same of those of the optimizer's states that have other sizes
    owned: list[Fragment]  # what this rank answers for: over all ranks every trained element exactly once
    held: list[Fragment]  # what this rank holds, and a load must fill: more than `owned` where ranks hold replicas
    state_keys: tuple[str, ...]  # WEIGHTS, then the optimizer's states

    @staticmethod
    def prepare(device: torch.device) -> None:
        """What may take long and needs no other rank. To be called before the ranks join, which time out."""

    @classmethod
    def for_attempt(
        cls, module: torch.nn.Module, weights: WeightReader, config: RunConfig, attempt: Attempt, world: World
    ) -> Self:
        """`module`, which may be on torch's meta device, under this engine, with what `attempt` planned for it.

        Its parameters, trained or not, begin as `weights`. All ranks together.
        """
        ...

    @property
    def skipped(self) -> bool:
        """Whether the last step updated nothing, since its gradient was not finite. The same on every rank."""

    @property
    def skipped_steps(self) -> int:
        """Steps that updated nothing before this attempt, as the checkpoint had it: to be read once, after a load."""

    @property
    def loss_scale(self) -> float | None:
        """fp16's, as it is now; None in another precision."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The module's forward pass, so that what gathers weights and sees the gradients is in it."""

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradient of one micro-batch's mean loss."""

    def step(self) -> None:
        """Close one micro-batch; after the last of the step: reduce, clip, update, clear.

        A step whose gradient is not finite updates nothing, on any rank; `skipped` tells.
        """

    def set_learning_rate(self, rate: float) -> None: ...

    def gradient_norm(self) -> float:
        """Global norm of the last step's mean gradient before clipping; infinite where the step was skipped."""

    def weights(self, fragment: Fragment) -> torch.Tensor:
        """The masters of a fragment in `owned` or `held`: 1-D, fp32, the engine's own storage.

        They change in `step` and `load` only. Whoever writes into them calls `publish` before the next pass.
        """

    def list_saved(self, key: str) -> list[Fragment]:
        """What this rank answers for under `key` of state_keys: `owned`, or, of a state that is not as large as its
        parameter, fragments of that state; over all ranks each of its elements exactly once."""

    def read(self, key: str, fragment: Fragment, out: torch.Tensor) -> None:
        """Copy the values of a fragment in `held` or `list_saved(key)` into `out`: 1-D, fp32, in any memory.

        They change in `step` and `load` only. The host waits for no device. What is fp32 is copied with nothing
        allocated; what is not is made fp32 in small parts.
        """

    def load(self, key: str, read: Callable[[str, int, int], torch.Tensor]) -> None:
        """Fill all that this rank holds under `key` with what `read` answers for name, offset and length: 1-D, fp32, on
        the CPU. After WEIGHTS, call `publish`."""

    def publish(self) -> None:
        """Make the weights that passes see again from the masters."""

    def replicas(self) -> list[torch.Tensor]:
        """What every rank holds and must hold alike, to the bit, at a step boundary, whether or not it is trained: the
        same tensors in the same order on all ranks, of any dtype, unchanged until the next `step`. Empty where
        everything is sharded."""

    def counters(self, step: int) -> Counters:
        """As they are after `step` steps of the run."""

    def set_counters(self, step: int, counters: Counters) -> None:
        """Go on after `step` steps of the run, as `counters` of a checkpoint has it."""


@torch.no_grad()
def load_parameters(module: torch.nn.Module, weights: WeightReader, dtype: torch.dtype, device: torch.device) -> None:
    """Give every parameter of `module` room on `device` in `dtype`, and its values, one after the other."""

    def load(name: str, parameter: torch.Tensor) -> torch.Tensor:
        values = torch.empty(parameter.shape, dtype=dtype, device=device)
        values.view(-1).copy_(weights.read(name, 0, parameter.numel()))
        return values

    replace_parameters(module, load)


def replace_parameters(module: torch.nn.Module, make: Callable[[str, torch.Tensor], torch.Tensor]) -> None:
    """Put what `make` answers of a parameter's name and itself in its place; what is trained stays so."""
    for path, owner in module.named_modules():
        for name, parameter in list(owner.named_parameters(recurse=False)):
            values = make(f"{path}.{name}" if path else name, parameter)
            setattr(owner, name, torch.nn.Parameter(values, parameter.requires_grad))
