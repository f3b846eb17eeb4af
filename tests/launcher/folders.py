"""Run folders as training leaves them, made from code in no time; and a SLURM of a few lines of shell that counts."""

import json
import os
import shutil
import socket
import time
from collections.abc import Sequence
from pathlib import Path

from configs.pipelines import PIPELINES
from configs.reading.load import dump_config
from configs.schema import RunConfig
from slurm.job.record import JobRecord
from slurm.site import Site
from store.run.attempt_plan import AttemptPlan
from store.run.end import End
from store.run.run_dir import Attempt, RunDir, write_json

STEPS = 100


def make_run(runs: Path, name: str, *, job: str | None = None, after: int = 0) -> RunDir:
    """A run that was submitted, to SLURM where `job` is given, and has begun no attempt."""
    run = RunDir(runs / name)
    run.path.mkdir(parents=True)
    config = RunConfig(name=name, model="me/mine", data={"images": "/images"}, batch=8, steps=STEPS, runs=str(runs))
    run.config_path.write_text(dump_config(config))
    if job:
        JobRecord(job, Site(), after, time.time()).write(run)
    return run


def make_model_folder(model: Path, kind: str = "StableDiffusionPipeline") -> None:
    """A pipeline folder as the launcher looks at it; its weights are empty files."""
    pipeline = PIPELINES["StableDiffusionPipeline"]
    for part, name in (*pipeline.configs.items(), *pipeline.weights.items()):
        (model / part).mkdir(parents=True, exist_ok=True)
        (model / part / name).write_text("{}" if name.endswith(".json") else "")
    (model / "model_index.json").write_text(json.dumps({"_class_name": kind}))


def add_attempt(
    run: RunDir, *, end: End | None = None, on: tuple[str, ...] = (), step: int = 0, ranks: int = 2, ago: float = 0
) -> Attempt:
    """The next attempt; by SLURM `on` nodes, where these are named. Its ranks gave their last sign of life `ago`."""
    attempt = run.open_attempt()
    AttemptPlan(1, ranks, 1, 8 // ranks, STEPS, "/model", "nonce", 100, "digest").write(attempt)
    if on:
        record = JobRecord.read(run)
        where = {"job": record.id, "nodes": list(on), "left_out": {}, "time": time.time(), "because": "first attempt"}
        write_json(attempt.allocation_path, where | {"batch_host": on[0], "output": {}})
    for rank in range(ranks):
        host = on[rank % len(on)] if on else socket.gethostname()
        beat = {"time": time.time() - ago, "rank": rank, "step": step, "doing": "training", "since": time.time() - ago}
        attempt.heartbeat_path(rank).parent.mkdir(exist_ok=True)
        attempt.heartbeat_path(rank).write_text(json.dumps(beat | {"host": host, "pid": os.getpid()}))
        attempt.log_path(rank).write_text(f"rank {rank} of attempt {attempt.number}\n")
    with open(run.metrics_path, "a") as file:
        for done in range(max(step - 5, 1), step + 1):
            file.write(json.dumps({"step": done, "time": 0.0, "loss/train": 1 / done, "time/step_s": 2.0}) + "\n")
    if end:
        end.write(attempt)
    return attempt


def add_failure(attempt: Attempt, rank: int, host: str, message: str, when: float, **changes: object) -> None:
    report = {"time": when, "rank": rank, "host": host, "pid": 1, "log_size": 0, "error": "RuntimeError"}
    report |= {"message": message, "peer_lost": "closed by peer" in message, "traceback": "", "exit_code": 1}
    write_json(attempt.failure_path(rank), report | changes)


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
