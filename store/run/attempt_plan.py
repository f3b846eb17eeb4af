"""What an attempt was started with: written by the launcher as `plan.json`, obeyed by every rank."""

from dataclasses import dataclass

from configs.solve.batch import BatchPlan, Shape
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

    @property
    def batch_plan(self) -> BatchPlan:
        return BatchPlan(Shape(self.nodes, self.gpus_per_node), self.micro_batch, self.gradient_accumulation_steps)
