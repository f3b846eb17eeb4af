"""Real runs on the lab: small, submitted as people do it, and looked at in the queue and in their folders."""

import getpass
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import psutil

from slurm.lab import Lab
from store.run.end import End
from store.run.records import ResumePoint
from store.run.run_dir import Attempt, RunDir
from tests.impostors import write_impostors
from tests.shell import ENVIRONMENT, LOCKSTEP
from tests.tiny import make_images, make_pipeline

STEPS, BATCH = 40, 6
POLL = 0.2  # seconds between two looks, which may be questions to slurmctld
OVER = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY")
PROFILE = "partition: {}\ngpus: {}\ncpus_per_rank: 1\nmax_time: 01:00:00\n"
MADE_UP = "setup: [export LOCKSTEP_GPUS=0]\n"  # the lab's GPUs are, so that ranks run on CPUs
T = TypeVar("T")


class Cluster:
    """A lab, and a folder that its nodes share, with a model, images and a user's site profiles."""

    def __init__(self, lab: Lab, folder: Path):
        self.lab, self.folder = lab, folder
        self.model = make_pipeline(folder / "model")
        self.images = make_images(folder / "images")
        write_impostors(folder / "impostors")
        self.site("low", PROFILE.format("low", "gres") + MADE_UP)
        self.site("gpus", PROFILE.format("main", "gpus-per-node") + MADE_UP)
        self.site("real-gpus", PROFILE.format("main", "gpus-per-node"))

    def site(self, name: str, text: str) -> None:
        path = self.folder / "config" / "lockstep" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def run(self, *words: object, **options: Any) -> subprocess.CompletedProcess[str]:
        """A command on the login node."""
        path = f"{self.folder / 'bin'}:{os.environ['PATH']}"
        environment = ENVIRONMENT | {"XDG_CONFIG_HOME": str(self.folder / "config"), "PATH": path}
        environment["PYTHONPATH"] = str(self.folder / "impostors")  # it goes from here to every rank
        return self.lab.run(words, timeout=300, env=environment, **options)

    def lockstep(self, *words: object) -> subprocess.CompletedProcess[str]:
        return self.run(LOCKSTEP, *words)

    @contextmanager
    def wrapped(self, **scripts: str) -> Iterator[None]:
        """While in here, a site's own commands stand before SLURM's on the login node: shell scripts, in which {} is
        SLURM's."""
        for name, script in scripts.items():
            path = self.folder / "bin" / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(f"#!/bin/sh\n{script.format(shutil.which(name))}\n")
            path.chmod(0o755)
        try:
            yield
        finally:
            shutil.rmtree(self.folder / "bin")

    @contextmanager
    def partition(self, name: str, *words: str) -> Iterator[None]:
        """While in here, there is one more partition of all nodes, and a site profile of its name."""
        self.site(name, PROFILE.format(name, "none"))
        self.run("scontrol", "create", f"PartitionName={name}", "Nodes=ALL", *words, check=True)
        try:
            yield
        finally:
            self.clear()
            self.run("scontrol", "delete", f"PartitionName={name}", check=True)

    def queue(self, what: str = "%i") -> list[str]:
        """Every job that runs or may run yet."""
        return self.run("squeue", "-h", "-o", what, check=True).stdout.split()

    def until(self, condition: Callable[[], T], seconds: float, story: Callable[[], str] = str) -> T:
        """What `condition` answers once it is true; else the `story` is told."""
        deadline = time.monotonic() + seconds
        while not (answer := condition()):
            assert time.monotonic() < deadline, f"not within {seconds} s\n{story()}"
            time.sleep(POLL)
        return answer

    @contextmanager
    def occupied(self, node: str) -> Iterator[None]:
        """Somebody else has the whole node while in here."""
        words = f"sbatch --parsable -p main -w {node} --exclusive -o /dev/null --wrap".split()
        job = self.run(*words, "sleep 600", check=True).stdout.strip()
        try:
            self.until(lambda: self.run("squeue", "-h", "-j", job, "-o", "%T").stdout == "RUNNING\n", 20)
            yield
        finally:
            self.run("scancel", job)

    def clear(self) -> None:
        """End every job."""
        if self.queue():
            self.run("scancel", f"--user={getpass.getuser()}", check=True)
            self.until(lambda: not self.queue(), 60)

    def new_run(
        self, name: str, *, cluster: dict[str, Any] | None = None, runs: Path | None = None, **changes: Any
    ) -> "Run":
        """A config file, of 2 nodes × 1 rank but for `cluster` and `changes`; nothing is submitted yet."""
        root = runs or self.folder / "runs"
        settings = {
            "model": str(self.model),
            "data": {"images": str(self.images), "resolution": 32, "crop": "random", "flip": True, "workers": 0},
            "batch": BATCH,
            "steps": STEPS,
            "lr": 1e-4,
            "zero": 2,
            "precision": "fp32",  # sites that make up GPUs would have bf16
            "ema": True,
            "report_every_steps": 1,
            "checkpoint": {"every_steps": 5, "notice_seconds": 20},
            "cluster": {"site": "lab", "nodes": 2, "gpus_per_node": 1, "time": "00:05:00"} | (cluster or {}),
            "runs": str(root),
        }
        file = self.folder / f"{name}.yaml"
        file.write_text(json.dumps(settings | changes))
        return Run(self, file, RunDir(root / name))


@dataclass(frozen=True)
class Run:
    """One config and the run that comes of it."""

    cluster: Cluster
    file: Path
    dir: RunDir

    def submit(self) -> str:
        """Queue it, or attach to it; what was said to the person."""
        done = self.cluster.lockstep("submit", self.file)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    @property
    def job(self) -> str:
        return json.loads(self.dir.job_path.read_text())["id"]

    def shown(self, what: str) -> str:
        """What squeue shows of the job, in its own format, also after the end."""
        return self.cluster.run("squeue", "-h", "-t", "all", "-j", self.job, "-o", what).stdout.strip()

    @property
    def state(self) -> str:
        return self.shown("%T")

    @property
    def comment(self) -> str:
        return self.shown("%k")

    def is_over(self) -> str:
        """The job's last state, where there is one; HELD where it waits for people."""
        state, reason = self.shown("%T|%r").split("|")
        held = state == "PENDING" and "held" in reason
        return "HELD" if held else state if state in OVER else ""

    def finish(self, seconds: float = 240) -> str:
        return self.until(self.is_over, seconds)

    def until(self, condition: Callable[[], T], seconds: float = 90) -> T:
        return self.cluster.until(condition, seconds, self.story)

    def story(self) -> str:
        """For people, when a test fails."""
        parts = [self.cluster.run("squeue", "-t", "all").stdout, self.cluster.run("sinfo", "-N").stdout]
        for path in (*self.dir.slurm_path.glob("*.out"), *self.dir.path.glob("attempts/*/logs/*")):
            parts.append(f"--- {path}\n{path.read_text(errors='replace')[-1500:]}")
        return "\n".join(parts)

    def trains(self, attempt: int = 1, steps: int = 2, seconds: float = 120) -> Attempt:
        """Wait until `attempt` has made `steps` steps of its own."""
        self.until(lambda: len(lines(self.dir.attempt(attempt).metrics_path)) >= steps or self.is_over(), seconds)
        assert not self.is_over(), self.story()
        return self.dir.attempt(attempt)

    def attempts(self) -> list[int]:
        return [attempt.number for attempt in self.dir.attempts()]

    def ends(self) -> list[str | None]:
        """How every attempt ended; None where it has no end record."""
        found = [End.read_if_written(attempt.end_path) for attempt in self.dir.attempts()]
        return [end.reason if end else None for end in found]

    def rank(self, rank: int) -> psutil.Process:
        """The process of `rank` on its node, in the attempt that runs now."""
        for process in self.cluster.lab.processes():
            try:
                ours = str(self.dir.path) in process.cmdline() and "train" in process.cmdline()
                if ours and process.environ().get("RANK") == str(rank):
                    return process
            except psutil.Error:
                continue  # gone meanwhile
        raise AssertionError(f"rank {rank} does not run\n{self.story()}")

    def check_consumed_once(self, steps: int = STEPS) -> None:
        """The attempts' kept steps, one after the other, are 1 … `steps`; so are the run's metrics. A step's positions
        follow from its number."""
        attempts = [attempt for attempt in self.dir.attempts() if ResumePoint.read_if_written(attempt.resume_path)]
        starts = [ResumePoint.read_if_written(attempt.resume_path).step for attempt in attempts]
        kept = []
        for attempt, first, last in zip(attempts, starts, [*starts[1:], steps], strict=True):
            made = lines(attempt.metrics_path)
            assert [line["step"] for line in made] == list(range(first + 1, first + 1 + len(made)))
            kept += [line for line in made if line["step"] <= last]
        assert [line["step"] for line in kept] == list(range(1, steps + 1))
        assert lines(self.dir.metrics_path) == kept
        assert [line["totals/samples_seen"] for line in kept] == [
            line["step"] * kept[0]["totals/samples_seen"] for line in kept
        ]

    def losses(self) -> list[float]:
        return [line["loss/train"] for line in lines(self.dir.metrics_path)]


def lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a metrics file."""
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
