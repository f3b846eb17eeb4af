"""One rank's part of an attempt: put the pieces together, make the steps, export, write down how it ended."""

import gc
import os
from pathlib import Path

import torch
from transformers import logging as transformers_logging

from configs.errors import LockstepError
from configs.reading.load import load_config
from configs.schema import RunConfig
from configs.solve.engine import choose_engine
from configs.solve.settle import check_precision
from store.checkpoint import checkpoints
from store.checkpoint.checkpoints import Checkpoint
from store.dataset.identity import identify_dataset
from store.dataset.index import Index
from store.dataset.run_index import open_run_index
from store.run.attempt_plan import AttemptPlan
from store.run.end import End
from store.run.records import EXPORTING
from store.run.run_dir import Attempt, RunDir
from train import process_group
from train.checkpoint.export import export_run
from train.checkpoint.restore import resume_run
from train.checkpoint.saver import Saver
from train.context import RankContext
from train.data.stream import Stream, micro_batches
from train.encode.stage import encode_dataset
from train.engines import import_engine
from train.engines.ema import Ema
from train.loop import run_steps
from train.models import load_model
from train.models.compile import compile_blocks
from train.objective import make_objective
from train.progress import WAITING_FOR_OTHERS, Progress
from train.reporting import environment
from train.reporting.bad_samples import BadSamples
from train.reporting.base import Reporter
from train.reporting.compile_cache import CompileCache
from train.reporting.metrics import Metrics
from train.reporting.metrics_writer import MetricsWriter
from train.reporting.sample_images import SampleImages
from train.resilience.monitor import RankMonitor
from train.resilience.skipped import SkippedSteps
from train.step import Trainer
from train.stop_signal import StopSignal


def run_attempt(run: RunDir, attempt: Attempt, stop: StopSignal) -> End:
    """Train the run in `run` as `attempt` plans it. Every rank calls this; all return the same End."""
    plan = AttemptPlan.read(attempt.plan_path)
    config = plan.settle_config(load_config(run.config_path))
    engine_class = import_engine(choose_engine(config))
    if not plan.only_encode:
        engine_class.prepare(process_group.choose_device())  # before the ranks join, which wait for it only so long
    process_group.keep_flight_recorder(attempt.flight_recorder_path)
    timeout = process_group.choose_timeout(config.hang_seconds)
    world = process_group.init_process_group(plan.batch_plan.shape.world_size, timeout)
    context = RankContext(run, attempt, plan, config, world, Progress(), stop)
    monitor = RankMonitor(context)
    _prepare_torch(config, world)
    if world.is_main_process:
        environment.record_environment(attempt, world)

    model = load_model(config, Path(plan.model_folder), world.device)
    index = _open_index(context)
    encodings = encode_dataset(context, model, index)
    if encodings is None or plan.only_encode:
        end = _end_before_training(context, encoded=encodings is not None)
    else:
        objective = make_objective(config, model.noise_scheduler, model.dtype, world.device)
        stream = Stream(
            config,
            index,
            model,
            objective.timestep,
            encodings,
        )
        compiled = compile_blocks(model.denoiser, config, world.device)
        engine = engine_class.for_attempt(model.denoiser, model.weights, config, attempt, world)
        ema = Ema(config.ema, engine) if config.ema else None
        end = _train(context, monitor, Trainer(model, objective, engine, ema, world.device), stream, compiled=compiled)
    world.barrier()
    if world.is_main_process:
        end.write(attempt.end_path)
    world.barrier()
    monitor.stop()
    return end


def _end_before_training(context: RankContext, *, encoded: bool) -> End:
    """Of an attempt that had nothing else to do, or that a notice reached while it encoded."""
    reasons = [reason for reason in context.world.gather(context.stop.reason) if reason is not None]
    newest = checkpoints.list_checkpoints(context.run)[-1:]
    step, name = (newest[0].step, newest[0].path.name) if newest else (0, None)
    return End("encoded", step, name) if encoded else End("notice", step, name, reasons[0])


def _train(context: RankContext, monitor: RankMonitor, trainer: Trainer, stream: Stream, *, compiled: bool) -> End:
    """Make the steps that are left, and export the pipeline after the last."""
    run, config, world, engine = context.run, context.config, context.world, trainer.engine
    resumed = resume_run(context, engine, trainer.ema)
    start = resumed.step if resumed is not None else 0
    context.progress.step = start
    saver = Saver(context, engine, trainer.ema, resumed)

    steps = range(start + 1, context.length.steps + 1)
    writer = MetricsWriter(run, context.attempt, steps.start) if world.is_main_process else None
    skipped = SkippedSteps(world, engine, stream, engine.skipped_steps)
    bad = BadSamples(context, steps.start)
    reporters: list[Reporter] = [skipped, Metrics(context, engine, saver, skipped, bad, writer)]
    if compiled:
        reporters.append(CompileCache(context, steps.start))
    if config.pictures:
        reporters.append(SampleImages(context, trainer.model, writer))

    _keep_what_is_loaded()
    on_gpu = world.device.type == "cuda"
    batch_plan = context.plan.batch_plan
    batches = micro_batches(stream, batch_plan, world.rank, steps, pin_memory=on_gpu, report_bad=bad.add)
    end = run_steps(context, steps, trainer, batches, saver, reporters)
    monitor.keep_only_heartbeats()
    if writer is not None:
        writer.close()
    if end.reason == "finished":
        _export(context, saver.newest)
    saver.close()
    return end


def _keep_what_is_loaded() -> None:
    """Have Python look through what is there now for the last time. It is not garbage, half a million objects take a
    third of a second in the middle of a step, and workers would get pages of their own for them."""
    gc.collect()
    gc.freeze()


def _prepare_torch(config: RunConfig, world: process_group.World) -> None:
    if world.device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(world.device)
        check_precision(config.precision, f"{major}.{minor}")
    transformers_logging.disable_progress_bar()
    torch.backends.cudnn.allow_tf32 = False  # fp32 means fp32; torch's own default for convolutions is TF32
    if world.device.type != "cuda":
        return
    torch.backends.cudnn.benchmark = not config.deterministic  # tried once for each size of images, and those are few
    if config.deterministic:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # cuBLAS reads it at its first call
        torch.use_deterministic_algorithms(True)


def _open_index(context: RankContext) -> Index:
    """Raises LockstepError where it is not the one that the attempt was planned with."""
    index = open_run_index(context.run, context.config)
    if identify_dataset(context.config.data, index) != context.plan.dataset_digest:
        raise LockstepError(f"{context.run.dataset_path}: is not the dataset this attempt was planned with")
    return index


def _export(context: RankContext, newest: Checkpoint | None) -> None:
    """Rank 0 writes what comes of the newest checkpoint."""
    if not context.world.is_main_process:
        context.progress.set_activity(f"{WAITING_FOR_OTHERS} to export")
        return
    context.progress.set_activity(EXPORTING)
    assert newest is not None  # a run that is finished has saved its last step
    plan = AttemptPlan.read(context.run.attempt(newest.attempt).plan_path)  # this attempt may have made no step
    export_run(context.config, plan, newest, context.config.exported, context.run.pipeline_path)
    print(f"exported {context.run.pipeline_path}", flush=True)
