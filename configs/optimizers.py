"""What planning knows of an optimizer without torch: one row each; train/engines/optimizers.py makes them."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec

from configs.errors import UserError
from configs.schema import RunConfig


def _count_elements(shape: Sequence[int]) -> int:
    return math.prod(shape)


def _count_rows(shape: Sequence[int]) -> int:
    """Means over the last dimension; of a vector there are none."""
    return math.prod(shape) // shape[-1] if len(shape) > 1 else 0


def _count_columns(shape: Sequence[int]) -> int:
    """Means over the dimension before the last; of a vector there are none."""
    return math.prod(shape) // shape[-2] if len(shape) > 1 else 0


def _count_vector(shape: Sequence[int]) -> int:
    """All elements of what has no rows and columns."""
    return math.prod(shape) if len(shape) < 2 else 0


@dataclass(frozen=True)
class OptimizerFacts:
    """States are fp32 in checkpoints, under the names that torch gives them, whatever they are in memory."""

    states: Mapping[str, Callable[[Sequence[int]], int]]  # elements of each that a parameter of some shape has
    bytes_per_parameter: float  # of all its states together, in memory
    bytes_saved: float  # per parameter, of all its states together, in a checkpoint
    is_elementwise: bool  # an element is updated by what belongs to it alone, so that parameters may be cut anywhere
    takes_scale: bool  # its own update divides the gradient, and leaves all alone where that is not finite
    package: str | None = None  # that makes it, where torch does not
    extra: str = ""  # of Lockstep's own package, which installs that one
    smallest: int | None = None  # elements of a tensor, below which it keeps its states in 32 bits all the same
    most_elements: int | None = None  # of one tensor that it updates


_ELEMENTWISE = {"exp_avg": _count_elements, "exp_avg_sq": _count_elements}
OPTIMIZERS = {
    "adamw": OptimizerFacts(_ELEMENTWISE, bytes_per_parameter=8, bytes_saved=8, is_elementwise=True, takes_scale=True),
    "adamw_8bit": OptimizerFacts(
        _ELEMENTWISE,
        bytes_per_parameter=2 + 2 * 4 / 256,  # two codes, and a scale of every 256
        bytes_saved=8,
        is_elementwise=True,
        takes_scale=False,
        package="bitsandbytes",
        extra="8bit",
        smallest=4096,  # bitsandbytes' own min_8bit_size
        most_elements=2**31 - 1,  # its kernels count them in 32 bits
    ),
    "adafactor": OptimizerFacts(
        {"row_var": _count_rows, "col_var": _count_columns, "variance": _count_vector},
        # Of Stable Diffusion 1, whose kernels of 3 × 3 keep two thirds of their elements and those of 1 × 1 twice as
        # many as they have; 1.9 of 2.1, and 0.4 of XL, which is nearly all linear layers.
        bytes_per_parameter=2.13,
        bytes_saved=2.13,
        is_elementwise=False,
        takes_scale=False,
    ),
}


def describe_optimizer(config: RunConfig) -> str:
    """The optimizer and its settings, for a person."""
    optimizer = config.optimizer
    if optimizer.name == "adafactor":
        settings = [f"β2 decay {optimizer.beta2_decay:g}", f"clip threshold {optimizer.clip_threshold:g}"]
    else:
        settings = [f"β {optimizer.betas[0]:g} and {optimizer.betas[1]:g}", f"ε {optimizer.eps:g}"]
    decayed = " of matrices" if optimizer.decay == "matrices" else ""
    settings.append(f"weight decay {optimizer.weight_decay:g}{decayed}")
    return f"{optimizer.name}, {', '.join(settings)}"


def explain_sharding(config: RunConfig, world_size: int, parameters: int | None) -> str | None:
    """Why the optimizer of `config`, whose stage is a number, cannot be sharded over so many ranks, and the cure; None
    where it can. `parameters`: what is trained, where that is known."""
    name, facts = config.optimizer.name, OPTIMIZERS[config.optimizer.name]
    if config.engine == "fsdp2":
        if facts.is_elementwise or world_size == 1:
            return None
        return (
            f"engine: fsdp2 cuts each parameter over {world_size} ranks, and optimizer.name: {name} needs its rows and "
            "columns; write zero: 0 and precision: fp32 in place of engine: fsdp2, or optimizer.name: adamw or "
            "adamw_8bit"
        )
    if config.zero != 0 and not facts.is_elementwise:
        return (
            f"zero: {config.zero} lays the parameters end to end, and optimizer.name: {name} needs the rows and "
            "columns of each; write zero: 0"
        )
    flat = math.ceil((parameters or 0) / world_size)
    if config.zero in (1, 2) and facts.most_elements is not None and flat > facts.most_elements:
        return (
            f"zero: {config.zero} lays {flat:,} parameters of a rank end to end, and optimizer.name: {name} counts no "
            f"more than {facts.most_elements:,}; write zero: 3, engine: fsdp2, or ask for more GPUs"
        )
    return None


def check_package(config: RunConfig) -> None:
    """Raise UserError where what makes the optimizer of `config` is not installed here."""
    missing = _explain_package(config)
    if missing is not None:
        raise UserError(missing)


def warn_of_optimizer(config: RunConfig) -> Iterator[str]:
    """What one should know of the optimizer of `config`, as it is settled, before it is used; a sentence each."""
    name, facts = config.optimizer.name, OPTIMIZERS[config.optimizer.name]
    missing = _explain_package(config)
    if missing is not None:
        yield missing
    is_flat = config.engine == "deepspeed" and config.zero != 0
    if facts.smallest is not None and not is_flat:
        yield (
            f"optimizer.name: {name} keeps moments of 32 bits for what has fewer than {facts.smallest:,} elements on a "
            "rank, such as norms and biases"
        )


def _explain_package(config: RunConfig) -> str | None:
    name, facts = config.optimizer.name, OPTIMIZERS[config.optimizer.name]
    if facts.package is None or find_spec(facts.package) is not None:
        return None
    return (
        f"optimizer.name: {name} needs {facts.package}, which is not installed here; run pip install "
        f"'lockstep[{facts.extra}]', or write optimizer.name: adamw"
    )
