"""What `submit` settled once for all attempts of a run, and how each attempt is opened from it."""

import secrets
from dataclasses import dataclass, field

from configs.reading.load import load_config
from configs.schema import RunConfig
from configs.solve import deepspeed
from configs.solve.batch import BatchPlan, Shape, solve_batch
from configs.solve.engine import choose_engine
from configs.solve.hardware import Hardware
from configs.solve.length import count_epoch, solve_length
from configs.solve.model_size import read_model_size
from configs.solve.settle import Settled, settle_memory, settle_precision
from store.files import write_json
from store.run.attempt_plan import AttemptPlan
from store.run.records import Allocation, Record
from store.run.run_dir import Attempt, RunDir


@dataclass(frozen=True)
class Submission(Record):
    """Beside `run.yaml` and `dataset.arrow`: what those two mean on this cluster."""

    model_folder: str  # the pipeline folder; a hub id's snapshot, whose name is the commit
    dataset_size: int
    dataset_digest: str
    content: str  # digest of all that decides what comes of the run: config, code, samples, model
    hardware: Hardware = field(default_factory=Hardware)  # that the ranks of every attempt compute on
    source_sizes: list[int] = field(default_factory=list)  # samples of each; earlier versions knew one source
    only_encode: bool = False  # what its attempts do: `lockstep cache`, in the place of training

    def plan(self, settled: Settled) -> AttemptPlan:
        """The next attempt on the shape of the settled batch plan."""
        config, batch_plan = settled.config, settled.batch_plan
        assert config.zero != "auto", "it is settled"
        epoch = count_epoch(config.data, self.source_sizes or [self.dataset_size])
        return AttemptPlan(
            nodes=batch_plan.shape.nodes,
            gpus_per_node=batch_plan.shape.gpus_per_node,
            micro_batch=batch_plan.micro_batch,
            gradient_accumulation_steps=batch_plan.accumulation,
            total_steps=solve_length(config, batch_plan.batch, epoch).steps,
            nonce=secrets.token_hex(8),
            model_folder=self.model_folder,
            dataset_size=self.dataset_size,
            dataset_digest=self.dataset_digest,
            only_encode=self.only_encode,
            zero=None if config.engine == "fsdp2" else config.zero,
            source_sizes=self.source_sizes,
        )


def plan_batch(run: RunDir, config: RunConfig, shape: Shape | None = None) -> BatchPlan:
    """The batch plan of `config` on `shape`, or on its own; a run that was begun keeps the batch it was begun with."""
    attempts = run.attempts()
    return solve_batch(config, shape, begun=AttemptPlan.read(attempts[-1].plan_path).batch_plan if attempts else None)


def settle_run_precision(run: RunDir, config: RunConfig, hardware: Hardware) -> tuple[RunConfig, str | None]:
    """As `settle_precision`; a run that was begun keeps the precision that it was begun in."""
    attempts = run.attempts()
    begun = None
    if attempts and run.config_path.is_file():
        begun = AttemptPlan.read(attempts[-1].plan_path).settle_config(load_config(run.config_path)).precision
    return settle_precision(config, hardware, begun)


def open_attempt(
    run: RunDir, config: RunConfig, batch_plan: BatchPlan, allocation: Allocation | None = None
) -> Attempt:
    """Make the run's next attempt, planned on the shape of `batch_plan`. For whoever starts its processes.

    What `config` leaves open is settled for this shape. `allocation` goes into `nodes.json`, where SLURM gave the
    nodes. The plan comes last: by it others see the attempt. Raises UserError where `micro_batch: auto` has no answer.
    """
    submission = Submission.read(run.submission_path)
    settled = settle_memory(config, batch_plan, submission.hardware, read_model_size(submission.model_folder))
    plan = submission.plan(settled)
    attempt = run.open_attempt()
    if choose_engine(settled.config) == "deepspeed":
        write_json(attempt.deepspeed_path, deepspeed.render_deepspeed(settled.config, settled.batch_plan))
    if allocation is not None:
        allocation.write(attempt.allocation_path)
    plan.write(attempt.plan_path)
    return attempt
