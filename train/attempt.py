"""One rank's part of an attempt: put the pieces together, run the loop, export, write down how it ended."""

import os
from pathlib import Path

import torch
from transformers import logging as transformers_logging

from configs.errors import LockstepError
from configs.reading.load import load_config
from configs.schema import RunConfig
from configs.solve.length import Length
from store.dataset.listing import digest_samples, parse_samples
from store.run.attempt_plan import AttemptPlan
from store.run.end import End
from store.run.run_dir import Attempt, RunDir
from train import loop, process_group
from train.checkpoint.export import export_pipeline
from train.checkpoint.restore import resume_run
from train.checkpoint.saver import Saver
from train.context import RankContext
from train.data.stream import Stream, micro_batches
from train.engines import import_engine
from train.engines.ema import Ema
from train.models import load_model
from train.objective import make_objective
from train.reporting import environment
from train.reporting.metrics import MetricsWriter
from train.reporting.sample_images import SampleImages
from train.resilience.heartbeat import Heartbeat, Progress
from train.resilience.skipped import SkippedSteps
from train.resilience.stop_signal import StopSignal
from train.step import Trainer


def run_attempt(run: RunDir, attempt: Attempt, notice: StopSignal) -> End:
    """Train the run in `run` as `attempt` plans it. Every rank calls this; all return the same End."""
    config, plan = load_config(run.config), AttemptPlan.read(attempt)
    engine_module = import_engine("deepspeed")  # the only one so far
    engine_module.prepare(process_group.choose_device())  # before the ranks join, which wait for it only so long
    world = process_group.init_process_group(plan.batch_plan.shape.world_size)
    _prepare_torch(config, world)
    length = Length(plan.total_steps, plan.batch_plan.batch, plan.dataset_size)
    if world.is_main_process:
        environment.record_environment(attempt, world)
    progress = Progress()
    heartbeat = Heartbeat(run, attempt, world.rank, world.size, notice, progress, config.checkpoint.notice_seconds)

    model = load_model(config, Path(plan.model_folder), world.device)
    objective = make_objective(config, model.noise_scheduler, model.dtype, world.device)
    lines = run.dataset.read_text(encoding="utf-8")
    if digest_samples(lines) != plan.dataset_digest:
        raise LockstepError(f"{run.dataset}: is not the dataset this attempt was planned with")
    latent_shape = model.latent_shape(config.data.resolution)
    stream = Stream(config, parse_samples(lines), model.inputs, latent_shape, objective.timestep)
    engine = engine_module.make_engine(model.denoiser, config, attempt, world)
    ema = Ema(config.ema, engine) if config.ema else None
    trainer = Trainer(model, objective, engine, ema, world.device)
    context = RankContext(run, attempt, plan, config, world, progress, notice)
    resumed = resume_run(context, engine, ema)
    start = resumed.step if resumed is not None else 0
    progress.step = start
    saver = Saver(context, engine, ema, resumed)
    skipped = SkippedSteps(world, engine, stream, engine.skipped_steps)
    painter = SampleImages(config, model, world) if config.pictures else None

    steps = range(start + 1, length.steps + 1)
    sinks = MetricsWriter(run, attempt, steps.start, length) if world.is_main_process else None
    batches = micro_batches(stream, plan.batch_plan, world.rank, steps, pin_memory=world.device.type == "cuda")
    end = loop.run_steps(
        config, run, length, steps, world, trainer, skipped, batches, saver, painter, sinks, notice, heartbeat
    )
    progress.now("exporting")
    heartbeat.stop()
    if end.reason == "finished" and world.is_main_process:
        assert saver.newest is not None  # a run that is finished has saved its last step
        export_pipeline(config, plan, saver.newest, config.exported, run.pipeline)
        print(f"exported {run.pipeline}", flush=True)
    world.barrier()
    if sinks is not None:
        sinks.close()
        end.write(attempt)
    world.barrier()
    return end


def _prepare_torch(config: RunConfig, world: process_group.World) -> None:
    transformers_logging.disable_progress_bar()
    torch.backends.cudnn.allow_tf32 = False  # fp32 means fp32; torch's own default for convolutions is TF32
    if config.deterministic and world.device.type == "cuda":
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # cuBLAS reads it at its first call
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
