"""What planning knows of an optimizer without torch: one row each; train/engines/optimizers.py makes them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class OptimizerFacts:
    """States are fp32 tensors with one element per element of a parameter, under the names that torch gives them."""

    states: tuple[str, ...]
    bytes_per_parameter: int  # of all its states together, in memory
    engines: tuple[str, ...]  # that take it, by their names in train/engines


OPTIMIZERS = {
    "adamw": OptimizerFacts(
        states=("exp_avg", "exp_avg_sq"), bytes_per_parameter=8, engines=("deepspeed", "fsdp2", "ddp")
    ),
}
