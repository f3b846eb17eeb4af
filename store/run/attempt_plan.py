"""What an attempt was started with: written by the launcher as `plan.json`, obeyed by every rank."""

from dataclasses import dataclass, field
from fractions import Fraction

from configs.schema import RunConfig
from configs.solve.batch import BatchPlan, Shape
from configs.solve.length import count_epoch
from configs.solve.settle import EARLIER_PRECISION, UNKNOWN_ZERO
from store.run.records import Record


@dataclass(frozen=True)
class AttemptPlan(Record):
    """The shape, the batch plan and the length, all solved; ranks refuse a world that is not this one."""

    nodes: int
    gpus_per_node: int
    micro_batch: int
    gradient_accumulation_steps: int
    total_steps: int
    model_folder: str  # the pipeline folder; a hub id's snapshot, whose name is the commit
    nonce: str  # tells this attempt from any other that thinks it has the same number
    dataset_size: int
    dataset_digest: str
    # ZeRO stage. None under FSDP2, and in what an earlier version wrote: the stage of its config, or 2 where that says
    # nothing.
    zero: int | None = None
    source_sizes: list[int] = field(default_factory=list)  # samples of each; earlier versions knew one source
    only_encode: bool = False  # it ends once the cache of encodings has all that the run's samples need

    @property
    def batch_plan(self) -> BatchPlan:
        return BatchPlan(Shape(self.nodes, self.gpus_per_node), self.micro_batch, self.gradient_accumulation_steps)

    def count_epoch(self, config: RunConfig) -> Fraction:
        """The samples of one epoch."""
        return count_epoch(config.data, self.source_sizes or [self.dataset_size])

    def settle_config(self, config: RunConfig) -> RunConfig:
        """`config` as this attempt runs it: what it leaves open is as the launcher settled it."""
        precision = EARLIER_PRECISION if config.precision == "auto" else config.precision
        zero: int | str = config.zero if self.zero is None else self.zero
        stage = UNKNOWN_ZERO if zero == "auto" else zero
        return config.model_copy(update={"precision": precision, "zero": stage, "micro_batch": self.micro_batch})
