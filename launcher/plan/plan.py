"""What a run will be, worked out before anything is queued: one value that the text and the JSON both print."""

import math
import os
import shutil
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from configs.known_models import KNOWN_MODELS
from configs.model_file import is_model_file
from configs.model_folder import (
    check_known_model,
    check_model_file,
    check_model_folder,
    check_part_configs,
    check_pipeline_class,
    find_cached_snapshot,
    find_pipeline_class,
    list_missing_configs,
)
from configs.objective import check_objective, check_scheduler
from configs.optimizers import warn_of_optimizer
from configs.pipelines import PIPELINES, check_told, name_family
from configs.schema import RunConfig
from configs.solve.batch import BatchPlan, Shape, list_batch_plans, list_divisors
from configs.solve.deepspeed import render_deepspeed
from configs.solve.engine import choose_engine
from configs.solve.learning_rate import compute_learning_rate
from configs.solve.length import Length, solve_length
from configs.solve.model_size import read_model_size
from configs.solve.settle import check_precision, settle_memory
from launcher.backend import BACKENDS, Backend
from launcher.data.encodings import EncodingsPlan, plan_encodings
from launcher.format import format_rate, format_size
from launcher.hub.model_file import find_model_folder
from launcher.plan.data_plan import DataPlan, plan_data
from launcher.plan.memory_plan import MemoryPlan, plan_memory, warn_of_memory
from launcher.plan.request import PlanRequest, find_backend_name, find_shape, render_submit_command
from launcher.same_run import describe_cure, describe_excess, list_changes
from store.checkpoint.checkpoints import list_checkpoints
from store.run.records import ForkOrigin
from store.run.run_dir import RunDir
from store.run.submission import plan_batch, settle_run_precision

_SHAPES_SHOWN = 5
_NODE_COUNTS = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True)
class RunPlan:
    """A run's arithmetic on one shape: the screen, the tables and the JSON of `lockstep plan` all print this value."""

    config: RunConfig
    family: str | None  # of the model; None where nobody knows
    batch_plan: BatchPlan
    length: Length
    data: DataPlan
    run_dir: RunDir
    started: bool  # the run's folder exists
    newest_step: int | None  # of the newest checkpoint
    changes: list[str]  # what makes this another run than the one in that folder, which submit refuses
    excess: str | None  # that the run is trained longer already, which it refuses too
    lr: list[tuple[int, float]]  # (step, rate) at a few steps that show the schedule
    memory: MemoryPlan
    reasons: dict[str, str]  # of what the config leaves open: key → why it is settled as `config` has it
    encodings: EncodingsPlan | None  # where something is cached
    free_bytes: int  # on the disk of the run
    shapes: list[BatchPlan]  # some node counts that keep the batch
    deepspeed: dict[str, Any] | None  # its config, where it is the engine
    notes: list[str]
    next_command: str | None  # None where submit would refuse it

    @property
    def epoch(self) -> int | Fraction:
        """Samples of one epoch, in which those of a source may be seen more often or less than once."""
        assert self.length.epoch is not None
        return self.length.epoch

    @property
    def into_next_epoch(self) -> int:
        """Samples that the last batch takes beyond the config's epochs (or beyond the last whole one)."""
        config = self.config
        if config.steps is not None or config.samples is not None:
            return math.floor(self.length.samples % self.epoch)
        epochs = Fraction(str(config.epochs if config.epochs is not None else 1))
        return self.length.samples - math.ceil(epochs * self.epoch)


def make_plan(config: RunConfig, request: PlanRequest, backend: Backend | None = None) -> RunPlan:
    """Work the run out, for `backend` or the one that its command names. Reads the dataset's index and the headers of
    the model's files, and writes nothing but that index, where there is none yet.

    Raises UserError where the model cannot be trained, the batch does not divide, the data or the model folder is not
    there, or what is left open cannot be settled.
    """
    _check_model(config)
    run_dir = RunDir.for_config(config)
    shape = find_shape(config, request)
    backend = backend or BACKENDS[find_backend_name(config, shape)]()
    batch_plan = plan_batch(run_dir, config, shape) if shape else backend.plan_batch(run_dir, config)
    hardware = backend.find_hardware(config)
    if request.gpu_memory is not None:
        hardware = replace(hardware, gpus=True, gpu_memory=request.gpu_memory)
    turned = find_model_folder(config) if is_model_file(config.model) else None
    size = read_model_size(str(turned or config.model), config.revision)
    config, precision_reason = settle_run_precision(run_dir, config, hardware)
    check_precision(config.precision, hardware.compute_capability)
    settled = settle_memory(config, batch_plan, hardware, size)
    reasons = ({"precision": precision_reason} if precision_reason else {}) | settled.reasons
    config, batch_plan = settled.config, settled.batch_plan
    data = plan_data(config, batch_plan.batch, request.samples)
    length = solve_length(config, batch_plan.batch, data.epoch)
    steps = _steps_to_show(config, length.steps)
    checkpoints = list_checkpoints(run_dir)  # by their folders' names; whether they verify is for the run to find out
    class_name = find_pipeline_class(config)
    newest_step = checkpoints[-1].step if checkpoints else None
    origin = ForkOrigin.read_if_written(run_dir.origin_path)
    model_folder = None if origin else _find_known_folder(config, turned)
    changes = list_changes(run_dir, config, batch_plan, length.steps, model_folder, data.digest)
    excess = None if changes else describe_excess(run_dir, newest_step, length.steps)
    plan = RunPlan(
        config=config,
        family=None if class_name is None else name_family(class_name, size.configs.get("unet", {})),
        batch_plan=batch_plan,
        length=length,
        data=data,
        run_dir=run_dir,
        started=run_dir.config_path.exists(),
        newest_step=newest_step,
        changes=changes,
        excess=excess,
        lr=[(step, compute_learning_rate(config, step, length.steps)) for step in steps],
        memory=plan_memory(settled, hardware, size),
        encodings=plan_encodings(config, size, hardware, data.samples, data.captions, data.version),
        reasons=reasons,
        free_bytes=_measure_free_space(Path(config.runs)),
        shapes=_list_nearby_shapes(config, batch_plan),
        deepspeed=render_deepspeed(config, batch_plan) if choose_engine(config) == "deepspeed" else None,
        notes=data.notes,
        next_command=None if changes or excess else render_submit_command(request, backend, origin),
    )
    return replace(plan, notes=[*data.notes, *_warnings(plan)])


def list_all_batch_plans(plan: RunPlan) -> list[tuple[Shape, list[BatchPlan]]]:
    """Every (nodes, micro-batch, accumulation) that keeps the batch, at this many GPUs per node."""
    gpus, batch = plan.batch_plan.shape.gpus_per_node, plan.batch_plan.batch
    shapes = [Shape(nodes, gpus) for nodes in list_divisors(batch // gpus)]
    return [(shape, list_batch_plans(plan.config.data, batch, shape)) for shape in shapes]


def _check_model(config: RunConfig) -> None:
    """Refuse a model that submit would refuse, as far as this machine knows it: by its folder, by the hub's cache or
    by its id. The hub itself is not asked, so nothing is refused of which nothing is known."""
    model = config.model
    if is_model_file(model):
        check_told(config, check_model_file(config).class_name)
        folder = find_model_folder(config)
        if folder is not None:
            check_objective(config, folder)
        return
    if os.path.isabs(model):
        check_told(config, check_model_folder(Path(model), config.variant))
        check_objective(config, Path(model))
        return
    check_known_model(model)
    class_name = find_pipeline_class(config)
    if class_name is None:
        return
    check_pipeline_class(model, class_name)
    check_told(config, class_name)
    snapshot = find_cached_snapshot(model, config.revision)
    if snapshot is not None and not list_missing_configs(snapshot, PIPELINES[class_name]):
        check_part_configs(snapshot, PIPELINES[class_name])
    if snapshot is not None and (snapshot / "scheduler" / "scheduler_config.json").is_file():
        check_objective(config, snapshot)
    elif model in KNOWN_MODELS:
        check_scheduler(config, {"prediction_type": KNOWN_MODELS[model].prediction}, model)


def _find_known_folder(config: RunConfig, turned: Path | None) -> str | None:
    """The model's folder as submit will find it; None of the hub's, which submit asks, and of a file that is not turned
    into one yet."""
    if turned is not None:
        return str(turned)
    return config.model if os.path.isabs(config.model) and not is_model_file(config.model) else None


def _steps_to_show(config: RunConfig, total: int) -> list[int]:
    """Up to five steps that show the schedule: its start, the end of warm-up (or a quarter), and towards the last."""
    start = 0 if config.warmup_steps else 1
    bend = config.warmup_steps or total // 4
    rest = max(total - bend, 0)
    steps = {start, bend, bend + rest // 3, bend + 2 * rest // 3, total}
    return sorted(step for step in steps if start <= step <= total)


def _measure_free_space(folder: Path) -> int:
    """Bytes that are free where `folder` is, or will be."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _list_nearby_shapes(config: RunConfig, batch_plan: BatchPlan) -> list[BatchPlan]:
    """Some node counts that keep the batch, each with the largest micro-batch under the ceiling; the planned one is
    among them."""
    planned = batch_plan.shape
    allowed = config.cluster.nodes
    most = allowed.high if allowed.high > allowed.low else _NODE_COUNTS[-1]
    ceiling = config.micro_batch if isinstance(config.micro_batch, int) else batch_plan.micro_batch
    by_nodes = {planned.nodes: batch_plan}
    for nodes in _NODE_COUNTS:
        if nodes == planned.nodes or nodes > most:
            continue
        candidates = list_batch_plans(config.data, batch_plan.batch, Shape(nodes, planned.gpus_per_node))
        fitting = [candidate for candidate in candidates if candidate.micro_batch <= ceiling]
        if fitting:
            by_nodes[nodes] = fitting[0]
    nearest = sorted(by_nodes, key=lambda nodes: max(nodes / planned.nodes, planned.nodes / nodes))
    return [by_nodes[nodes] for nodes in sorted(nearest[:_SHAPES_SHOWN])]


def _warnings(plan: RunPlan) -> list[str]:
    """What the user should know before starting, one sentence each."""
    config, batch_plan, total = plan.config, plan.batch_plan, plan.length.steps
    notes = []
    if plan.changes:
        listed = "; ".join(plan.changes)
        notes.append(
            f"{plan.run_dir.path} holds another run, so submit refuses this one: {listed}; "
            f"{describe_cure(plan.run_dir)}"
        )
    if plan.excess is not None:
        notes.append(plan.excess)
    if is_model_file(config.model) and find_model_folder(config) is None:
        size_on_disk = format_size(os.path.getsize(config.model))
        notes.append(
            f"submit turns {config.model} into a diffusers folder once, {size_on_disk} in {config.cache_folder}"
        )
    if config.warmup_steps > total:
        notes.append(
            f"warm-up takes {config.warmup_steps:,} steps and the run {total:,}: "
            f"the learning rate ends at {format_rate(plan.lr[-1][1])} and never reaches lr"
        )
    size, keep = plan.memory.checkpoint, config.checkpoint.keep
    if size and size * (keep + 1) > plan.free_bytes:
        notes.append(
            f"{keep} checkpoints and the one being written do not fit into the free space; "
            "write a smaller checkpoint.keep, or another folder with runs"
        )
    ceiling = config.micro_batch
    if isinstance(ceiling, int) and batch_plan.micro_batch * 2 <= ceiling:
        notes.append(
            f"micro-batch {batch_plan.micro_batch} is far below micro_batch {ceiling}, because no larger divisor of "
            f"{batch_plan.batch // batch_plan.shape.world_size} samples per rank fits under it; "
            "see --shapes for what keeps this batch"
        )
    return [*notes, *warn_of_optimizer(config), *warn_of_memory(plan.memory, config, plan.reasons)]
