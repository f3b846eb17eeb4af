"""Run folders as training leaves them, made from code in no time; and a SLURM of a few lines of shell that counts."""

import json
import os
import shutil
import socket
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from configs.pipelines import PIPELINES
from configs.reading.load import dump_config
from configs.schema import RunConfig
from slurm.job.record import JobRecord
from slurm.site import Site
from store.run.attempt_plan import AttemptPlan
from store.run.end import End
from store.run.records import Allocation, FailureReport, HeartbeatRecord
from store.run.run_dir import Attempt, RunDir

STEPS = 100


def make_run(runs: Path, name: str, *, job: str | None = None, after: int = 0) -> RunDir:
    """A run that was submitted, to SLURM where `job` is given, and has begun no attempt."""
    run = RunDir(runs / name)
    run.path.mkdir(parents=True)
    config = RunConfig(name=name, model="me/mine", data={"images": "/images"}, batch=8, steps=STEPS, runs=str(runs))
    run.config_path.write_text(dump_config(config))
    if job:
        JobRecord(job, Site(), after, time.time()).write(run.job_path)
    return run


def make_model_folder(model: Path, kind: str = "StableDiffusionPipeline") -> None:
    """A pipeline folder as the launcher looks at it; its weights are empty files. Of a class that is not trained it has
    the parts of another one."""
    pipeline = PIPELINES.get(kind, PIPELINES["StableDiffusionPipeline"])
    for part, name in (*pipeline.configs.items(), *pipeline.weights.items()):
        (model / part).mkdir(parents=True, exist_ok=True)
        (model / part / name).write_text("{}" if name.endswith(".json") else "")
    if pipeline.tells_sizes:
        told = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8}
        (model / "unet" / "config.json").write_text(
            json.dumps(told | {"projection_class_embeddings_input_dim": 6 * 8 + 512})
        )
    (model / "model_index.json").write_text(json.dumps({"_class_name": kind}))


def add_attempt(
    run: RunDir, *, end: End | None = None, on: tuple[str, ...] = (), step: int = 0, ranks: int = 2, ago: float = 0
) -> Attempt:
    """The next attempt; by SLURM `on` nodes, where these are named. Its ranks gave their last sign of life `ago`."""
    attempt = run.open_attempt()
    AttemptPlan(1, ranks, 1, 8 // ranks, STEPS, "/model", "nonce", 100, "digest").write(attempt.plan_path)
    if on:
        record = JobRecord.read(run.job_path)
        allocation = Allocation(str(record.id), list(on), time.time(), "first attempt", batch_host=on[0])
        allocation.write(attempt.allocation_path)
    for rank in range(ranks):
        host = on[rank % len(on)] if on else socket.gethostname()
        beat = HeartbeatRecord(rank, host, os.getpid(), time.time() - ago, step, "training", time.time() - ago)
        beat.write(attempt.heartbeat_path(rank), durable=False)
        attempt.log_path(rank).write_text(f"rank {rank} of attempt {attempt.number}\n")
    with open(run.metrics_path, "a") as file:
        for done in range(max(step - 5, 1), step + 1):
            file.write(json.dumps({"step": done, "time": 0.0, "loss/train": 1 / done, "time/step_s": 2.0}) + "\n")
    if end:
        end.write(attempt.end_path)
    return attempt


def add_failure(attempt: Attempt, rank: int, host: str, message: str, when: float, **changes: Any) -> None:
    report = FailureReport(rank, host, 1, when, 0, "RuntimeError", message, "closed by peer" in message, "", 1)
    replace(report, **changes).write(attempt.failure_path(rank))


class FakeSlurm:
    """squeue, sacct and scontrol that answer with the lines they are given, and count how often they are asked."""

    def __init__(
        self, folder: Path, *, squeue: Sequence[str] = (), sacct: Sequence[str] = (), scontrol: Sequence[str] = ()
    ):
        self.folder = folder
        folder.mkdir()
        for name, lines in (("squeue", squeue), ("sacct", sacct), ("scontrol", scontrol)):
            (folder / f"{name}.answer").write_text("".join(f"{line}\n" for line in lines))
            script = f'#!/bin/sh\necho "$@" >>{folder}/{name}.calls\nexec cat {folder}/{name}.answer\n'
            (folder / name).write_text(script)
            (folder / name).chmod(0o755)

    @property
    def path(self) -> str:
        return f"{self.folder}:{os.environ['PATH']}"

    def calls(self) -> dict[str, int]:
        files = {name: self.folder / f"{name}.calls" for name in ("squeue", "sacct", "scontrol")}
        return {name: len(file.read_text().splitlines()) if file.is_file() else 0 for name, file in files.items()}


def moment(seconds: float) -> str:
    """As SLURM writes the time that many seconds from now."""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(time.time() + seconds))


def many(runs: Path, finished: int, live: int) -> list[str]:
    """That many runs under `runs`, and squeue's lines for those that live."""
    templates = runs.parent / "templates"
    add_attempt(make_run(templates, "done", job="0"), end=End("finished", STEPS, "step"), on=("node1",), step=STEPS)
    add_attempt(make_run(templates, "live", job="0"), on=("node1",), step=40)
    lines = []
    for kind, count, first in (("done", finished, 10_000), ("live", live, 20_000)):
        for job in range(first, first + count):
            run = RunDir(runs / f"{kind}-{job}")
            shutil.copytree(templates / kind, run.path)
            run.job_path.write_text(run.job_path.read_text().replace('"id": "0"', f'"id": "{job}"'))
            if kind == "live":
                lines.append(f"{job}|RUNNING|None|node1|{moment(-60)}|{moment(3600)}")
    return lines
