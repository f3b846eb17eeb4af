"""A config that may start, and commands in this process beside a SLURM of shell scripts."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from PIL import Image

from configs.errors import LockstepError
from configs.reading.load import load_config
from configs.solve.hardware import Hardware
from launcher.cli.main import cli
from launcher.submit.inputs import RunInputs
from launcher.submit.prepare import PreparedRun, prepare_run
from slurm.job.record import JobRecord
from slurm.site import Site
from store.run.attempt_plan import AttemptPlan
from store.run.run_dir import Attempt, RunDir
from store.run.submission import Submission
from tests.launcher.folders import FakeSlurm, add_attempt, make_model_folder, moment

QUESTIONS = ("squeue", "sacct", "scontrol")
AWAY = "echo 'slurm_load_jobs error: Unable to contact slurm controller (connect failure)' >&2; exit 1"
TEST_ONLY = 'case "$*" in *--test-only*) echo "sbatch: Job 9 to start at 2027-01-01T00:00:00" >&2; exit;; esac'
SUBMIT = f'{TEST_ONLY}; case "$1" in --parsable) echo 8;; *) echo "Submitted batch job 8";; esac'
MAIN = "PartitionName=main Default=YES GraceTime=0 MaxTime=UNLIMITED PriorityTier=10 State=UP PreemptMode=OFF"
STEPS = 10
UNKNOWN = Hardware()


class Desk:
    """A config that may start, in-process commands, and a SLURM of shell scripts that writes down what it is told."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch):
        self.folder, self.slurm = folder, FakeSlurm(folder / "bin")
        monkeypatch.setenv("PATH", self.slurm.path)
        monkeypatch.setenv("XDG_CONFIG_HOME", str(folder / "config"))
        model, images = folder / "model", folder / "images"
        make_model_folder(model)
        images.mkdir()
        for number in range(8):
            Image.new("RGB", (32, 32)).save(images / f"{number}.png")
            (images / f"{number}.txt").write_text("a red circle")
        self.file = folder / "mine.yaml"
        data = {"images": str(images), "resolution": 32}
        self.file.write_text(
            json.dumps({"model": str(model), "data": data, "batch": 8, "steps": STEPS, "precision": "fp32"})
        )
        self.knows()
        self.does("sbatch", SUBMIT)
        self.does("scancel", "")

    def site(self, text: str) -> None:
        """The user's profile of this cluster."""
        path = self.folder / "config" / "lockstep" / "site.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def does(self, name: str, script: str) -> None:
        """The command `name` is this shell script, and notes down its words."""
        path = self.slurm.folder / name
        path.write_text(f'#!/bin/sh\necho "$@" >>{self.slurm.folder}/{name}.calls\n{script}\n')
        path.chmod(0o755)

    def knows(self, *jobs: str) -> None:
        """What squeue shows; sacct and scontrol know no job."""
        (self.slurm.folder / "squeue.answer").write_text("".join(f"{job}\n" for job in jobs))
        self.does("squeue", f"exec cat {self.slurm.folder}/squeue.answer")
        self.does("sacct", "")
        self.has()

    def has(self, *partitions: str, preempt: str = "preempt/partition_prio") -> None:
        """What scontrol shows of the cluster; it knows no job."""
        (self.slurm.folder / "partitions").write_text("".join(f"{line}\n" for line in (MAIN, *partitions)))
        words = f'*partition) cat {self.slurm.folder}/partitions;; *config) echo "PreemptType = {preempt}";;'
        self.does("scontrol", f'case "$*" in {words} *job) ;; *) echo "Job not found" >&2; exit 1;; esac')

    def told(self, name: str) -> list[str]:
        """With which words the command `name` was called."""
        calls = self.slurm.folder / f"{name}.calls"
        return calls.read_text().splitlines() if calls.is_file() else []

    def queued(self) -> list[str]:
        return [words for words in self.told("sbatch") if "--test-only" not in words]

    def lockstep(self, *words: object) -> tuple[int, str]:
        """The exit code, and all that is printed."""
        done = CliRunner().invoke(cli, [str(word) for word in words])
        if isinstance(done.exception, LockstepError):
            return done.exception.exit_code, f"{done.output}{done.exception}"
        return done.exit_code, done.output

    def ready(self, *overrides: str, hardware: Hardware = UNKNOWN) -> PreparedRun:
        return prepare_run(load_config(self.file, overrides), RunInputs(hardware))

    def submitted(self, job: str | None = "7", *overrides: str) -> RunDir:
        """The run, as a submit has left it."""
        ready = self.ready(*overrides)
        ready.write()
        JobRecord(job, Site(), 0, 0.0).write(ready.run.job_path)
        return ready.run


def begun(run: RunDir, **changes: Any) -> Attempt:
    """An attempt that SLURM started on this very dataset."""
    attempt = add_attempt(run, on=("node1",), **changes)
    plan = AttemptPlan.read(attempt.plan_path)
    submission = Submission.read(run.submission_path)
    plan = replace(plan, dataset_digest=submission.dataset_digest, model_folder=submission.model_folder)
    plan.write(attempt.plan_path)
    return attempt


def running(job: str) -> str:
    """squeue's line for a job with half an hour to go."""
    return f"{job}|RUNNING|None|node1|{moment(-60)}|{moment(1800)}"


def ended(job: str, state: str) -> str:
    """squeue's line for a job that ended just now."""
    return f"{job}|{state}|None|node1|{moment(-60)}|{moment(-5)}"
