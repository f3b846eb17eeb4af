"""What `submit` settled once for all attempts of a run, and how each attempt is opened from it."""

import secrets
from dataclasses import dataclass

from configs.schema import RunConfig
from configs.solve import deepspeed
from configs.solve.batch import BatchPlan, Shape, solve_batch
from configs.solve.engine import choose_engine
from configs.solve.length import solve_length
from store.run.attempt_plan import AttemptPlan
from store.run.records import Allocation, Record
from store.run.run_dir import Attempt, RunDir, write_json


@dataclass(frozen=True)
class Submission(Record):
    """Beside `run.yaml` and `dataset.jsonl`: what those two mean on this cluster."""

    model_folder: str  # the pipeline folder; a hub id's snapshot, whose name is the commit
    dataset_size: int
    dataset_digest: str
    content: str  # digest of all that decides what comes of the run: config, code, samples, model

    def plan(self, config: RunConfig, batch_plan: BatchPlan) -> AttemptPlan:
        """The next attempt on the shape of `batch_plan`."""
        return AttemptPlan(
            nodes=batch_plan.shape.nodes,
            gpus_per_node=batch_plan.shape.gpus_per_node,
            micro_batch=batch_plan.micro_batch,
            gradient_accumulation_steps=batch_plan.accumulation,
            total_steps=solve_length(config, batch_plan.batch, self.dataset_size).steps,
            nonce=secrets.token_hex(8),
            model_folder=self.model_folder,
            dataset_size=self.dataset_size,
            dataset_digest=self.dataset_digest,
        )


def plan_batch(run: RunDir, config: RunConfig, shape: Shape | None = None) -> BatchPlan:
    """The batch plan of `config` on `shape`, or on its own; a run that was begun keeps the batch it was begun with."""
    attempts = run.attempts()
    return solve_batch(config, shape, begun=AttemptPlan.read(attempts[-1].plan_path).batch_plan if attempts else None)


def open_attempt(
    run: RunDir, config: RunConfig, batch_plan: BatchPlan, allocation: Allocation | None = None
) -> Attempt:
    """Make the run's next attempt, planned on the shape of `batch_plan`. For whoever starts its processes.

    `allocation` goes into `nodes.json`, where SLURM gave the nodes. The plan comes last: by it others see the attempt.
    """
    plan = Submission.read(run.submission_path).plan(config, batch_plan)
    attempt = run.open_attempt()
    if choose_engine(config) == "deepspeed":
        write_json(attempt.deepspeed_path, deepspeed.render_deepspeed(config, batch_plan))
    if allocation is not None:
        allocation.write(attempt.allocation_path)
    plan.write(attempt.plan_path)
    return attempt
