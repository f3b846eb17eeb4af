"""What a run will be, worked out before anything is queued: one value that the text and the JSON both print."""

import math
import os
import shlex
import shutil
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from configs.errors import UserError
from configs.pipelines import check_model_folder, check_objective
from configs.schema import RunConfig
from configs.solve.batch import BatchPlan, Shape, list_batch_plans, list_divisors
from configs.solve.deepspeed import render_deepspeed
from configs.solve.learning_rate import compute_learning_rate
from configs.solve.length import Length, solve_length
from configs.solve.memory import (
    ModelStates,
    count_unet_parameters,
    estimate_activations,
    estimate_checkpoint,
    list_model_states,
)
from launcher.format import format_rate
from store.checkpoint.checkpoints import list_checkpoints
from store.dataset.listing import list_samples, select_samples
from store.run.run_dir import RunDir
from store.run.submission import plan_batch

_SHAPES_SHOWN = 5


@dataclass(frozen=True)
class MemoryPlan:
    """What the model weighs, in bytes; None is `unknown`, which is said and never guessed."""

    parameters: int | None
    states: ModelStates | None  # of this run
    alternatives: list[ModelStates]  # of every ZeRO stage, with and without offload
    activations: int | None
    checkpoint: int | None


@dataclass(frozen=True)
class RunPlan:
    """A run's arithmetic on one shape."""

    config: RunConfig
    batch_plan: BatchPlan
    length: Length
    dataset: int
    run_dir: RunDir
    started: bool
    continues_at: int | None
    lr: list[tuple[int, float]]
    memory: MemoryPlan
    free: int
    shapes: list[BatchPlan]
    deepspeed: dict[str, Any]
    notes: list[str]
    next: str

    @property
    def into_next_epoch(self) -> int:
        """Samples that the last batch takes beyond the epochs asked for (or beyond the last whole one)."""
        config = self.config
        if config.steps is not None or config.samples is not None:
            return self.length.samples % self.dataset
        epochs = Fraction(str(config.epochs if config.epochs is not None else 1))
        return self.length.samples - math.ceil(epochs * self.dataset)


@dataclass(frozen=True)
class PlanRequest:
    """What the command line asks beside the config: a shape to plan for, a dataset size before the data is there."""

    file: str
    overrides: tuple[str, ...] = ()
    nodes: int | None = None
    gpus_per_node: int | None = None
    samples: int | None = None


def make_plan(config: RunConfig, request: PlanRequest) -> RunPlan:
    """Work the run out. Reads the dataset's listing and the UNet's header, and writes nothing.

    Raises UserError where the batch does not divide, the data or the model folder is not there.
    """
    run_dir = RunDir(Path(config.runs) / config.name)
    batch_plan = plan_batch(run_dir, config, _shape(config, request))
    if os.path.isabs(config.model):  # a hub id is resolved by submit
        check_model_folder(Path(config.model))
        check_objective(config, Path(config.model))
    dataset, notes = _dataset_size(config, request)
    length = solve_length(config, batch_plan.batch, dataset)
    plan = RunPlan(
        config=config,
        batch_plan=batch_plan,
        length=length,
        dataset=dataset,
        run_dir=run_dir,
        started=run_dir.config.exists(),
        continues_at=_newest_checkpoint(run_dir),
        lr=[(step, compute_learning_rate(config, step, length.steps)) for step in _five_steps(config, length.steps)],
        memory=_memory(config, batch_plan),
        free=_free_bytes(Path(config.runs)),
        shapes=_shapes(config, batch_plan),
        deepspeed=render_deepspeed(config, batch_plan),
        notes=notes,
        next=_submit(config, request, batch_plan),
    )
    plan.notes.extend(_warnings(plan))
    return plan


def list_all_batch_plans(plan: RunPlan) -> list[tuple[Shape, list[BatchPlan]]]:
    """Every (nodes, micro-batch, accumulation) that keeps the batch, at this many GPUs per node."""
    gpus, batch = plan.batch_plan.shape.gpus_per_node, plan.batch_plan.batch
    shapes = [Shape(nodes, gpus) for nodes in list_divisors(batch // gpus)]
    return [(shape, list_batch_plans(batch, shape)) for shape in shapes]


def _shape(config: RunConfig, request: PlanRequest) -> Shape | None:
    if request.nodes is None and request.gpus_per_node is None:
        return None
    cluster = config.cluster
    return Shape(request.nodes or cluster.nodes.low, request.gpus_per_node or cluster.gpus_per_node)


def _dataset_size(config: RunConfig, request: PlanRequest) -> tuple[int, list[str]]:
    if request.samples is not None:
        return request.samples, []
    folder = Path(config.data.images)
    if not folder.is_dir():
        raise UserError(
            f"data.images: {folder}: no such folder; correct it, or pass --samples N to plan before the data is there"
        )
    listing = list_samples(folder)
    samples = select_samples(config.data, listing)
    skipped = len(listing.problems)
    return len(samples), [f"{skipped} bad samples are left out; first: {listing.problems[0]}"] if skipped else []


def _memory(config: RunConfig, batch_plan: BatchPlan) -> MemoryPlan:
    parameters = count_unet_parameters(config.model)
    if parameters is None:
        return MemoryPlan(None, None, [], None, None)
    ema, world = config.ema is not None, batch_plan.shape.world_size
    alternatives = list(
        list_model_states(parameters, world, precision=config.precision, ema=ema, accumulation=batch_plan.accumulation)
    )
    chosen = next(s for s in alternatives if (s.zero, s.offload) == (config.zero, config.offload))
    activations = estimate_activations(
        parameters,
        resolution=config.data.resolution,
        precision=config.precision,
        micro_batch=batch_plan.micro_batch,
        recomputed=config.gradient_checkpointing,
    )
    return MemoryPlan(parameters, chosen, alternatives, activations, estimate_checkpoint(parameters, ema=ema))


def _newest_checkpoint(run_dir: RunDir) -> int | None:
    """The newest checkpoint's step by its folder's name; whether it verifies is for the run to find out."""
    there = list_checkpoints(run_dir)
    return there[-1].step if there else None


def _five_steps(config: RunConfig, total: int) -> list[int]:
    """Five steps that show the schedule: its start, the end of warm-up (or a quarter), and towards the last."""
    start = 0 if config.warmup_steps else 1
    knee = config.warmup_steps or total // 4
    rest = max(total - knee, 0)
    steps = {start, knee, knee + rest // 3, knee + 2 * rest // 3, total}
    return sorted(step for step in steps if start <= step <= total)


def _free_bytes(folder: Path) -> int:
    """Free space where `folder` is, or will be."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _shapes(config: RunConfig, batch_plan: BatchPlan) -> list[BatchPlan]:
    """Some node counts that keep the batch, each with the largest micro-batch under the ceiling."""
    gpus, here, allowed = batch_plan.shape.gpus_per_node, batch_plan.shape.nodes, config.cluster.nodes
    most = allowed.high if allowed.high > allowed.low else 64
    ceiling = config.micro_batch or batch_plan.micro_batch
    found = {here: batch_plan}
    for nodes in (1, 2, 4, 8, 16, 32, 64):
        fitting = [s for s in list_batch_plans(batch_plan.batch, Shape(nodes, gpus)) if s.micro_batch <= ceiling]
        if fitting and nodes != here and nodes <= most:
            found[nodes] = fitting[0]
    near = sorted(found, key=lambda nodes: max(nodes / here, here / nodes))[:_SHAPES_SHOWN]
    return [found[nodes] for nodes in sorted(near)]


def _submit(config: RunConfig, request: PlanRequest, batch_plan: BatchPlan) -> str:
    """The command that starts what was planned, the shape asked for with it."""
    here = config.cluster.site is None and batch_plan.shape.nodes == 1
    if here:
        shape = ["--local", *(["--ranks", str(request.gpus_per_node)] if request.gpus_per_node else [])]
    else:
        shape = [f"cluster.nodes={request.nodes}"] if request.nodes else []
        shape += [f"cluster.gpus_per_node={request.gpus_per_node}"] if request.gpus_per_node else []
    return shlex.join(["lockstep", "submit", request.file, *shape, *request.overrides])


def _warnings(plan: RunPlan) -> list[str]:
    config, notes = plan.config, []
    if config.warmup_steps > plan.length.steps:
        notes.append(
            f"warm-up takes {config.warmup_steps:,} steps and the run {plan.length.steps:,}: "
            f"the learning rate ends at {format_rate(plan.lr[-1][1])} and never reaches lr"
        )
    size = plan.memory.checkpoint
    if size and size * (config.checkpoint.keep + 1) > plan.free:
        notes.append(
            f"{config.checkpoint.keep} checkpoints and the one being written do not fit into the free space; "
            "write a smaller checkpoint.keep, or other runs"
        )
    wanted = config.micro_batch
    if wanted and plan.batch_plan.micro_batch * 2 <= wanted:
        notes.append(
            f"micro-batch {plan.batch_plan.micro_batch} is far below micro_batch {wanted}, because "
            f"{plan.batch_plan.batch // plan.batch_plan.shape.world_size} samples per rank divide no better; "
            "see --shapes for batches that do"
        )
    return notes
