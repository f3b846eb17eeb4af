"""`lockstep doctor` on the real cluster: it finds out by doing, writes the profile, and leaves nothing behind."""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from slurm.job.doctor_job import LEAD, start_file
from slurm.lab import Lab
from tests.shell import ENVIRONMENT, LOCKSTEP

Words = tuple[object, ...]


class Desk:
    """A login node with a user's own configuration and a folder for runs."""

    def __init__(self, lab: Lab, folder: Path):
        self.lab, self.runs, self.config = lab, folder / "runs", folder / "config"
        self.runs.mkdir()
        self.environment = ENVIRONMENT | {"XDG_CONFIG_HOME": str(self.config)}

    def wrap_sbatch(self, words: str) -> None:
        """A site's own sbatch, which prints these words first."""
        self.put_command("sbatch", f'echo "{words}"\nexec {shutil.which("sbatch")} "$@"')

    def put_command(self, name: str, script: str) -> None:
        """A command that goes before the machine's own."""
        path = self.config / "bin" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        self.environment["PATH"] = f"{path.parent}:{os.environ['PATH']}"

    def start(self, *words: object) -> subprocess.Popen[str]:
        command = self.lab.command([str(word) for word in (LOCKSTEP, "doctor", self.runs, *words)])
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(command, text=True, env=self.environment, **pipes)

    def profile(self, name: str, text: str) -> Path:
        path = self.config / "lockstep" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def queue(self) -> str:
        return self.lab.run(["squeue", "-h", "-o", "%i"]).stdout

    def wait_for_empty_queue(self) -> None:
        """SLURM lists a cancelled job until its processes are gone."""
        deadline = time.monotonic() + 60
        while queued := self.queue():
            assert time.monotonic() < deadline, f"not cancelled: {queued}"
            time.sleep(0.2)


@pytest.fixture
def desk(lab: Lab, tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(lab, tmp_path)
    yield desk
    desk.wait_for_empty_queue()
    assert list(desk.runs.iterdir()) == [], "the job's folder is taken away"


def shorten(desk: Desk, doctor: subprocess.Popen[str]) -> None:
    """Let the notice of the job's time limit come as soon as the job has started."""
    deadline = time.monotonic() + 60
    while not (started := list(desk.runs.glob(f"doctor-*/{start_file(0)}"))):
        assert doctor.poll() is None, doctor.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert json.loads(started[0].read_text())["host"].startswith("node")
    job = desk.queue().strip()
    desk.lab.run(["scontrol", "update", f"JobId={job}", f"EndTime=now+{LEAD + 2}"], check=True)


def test_a_sound_cluster_gets_its_profile(desk: Desk) -> None:
    desk.put_command("nvidia-smi", "echo 81559, 9.0, 550.54.15; echo 81559, 9.0, 550.54.15")
    doctor = desk.start()
    shorten(desk, doctor)
    said, wrong = doctor.communicate(timeout=120)
    assert doctor.returncode == 0, said + wrong
    lines = [line.split(maxsplit=1) for line in said.splitlines()]
    assert {word for word, _ in lines} == {"ok", "note"}
    for told in (
        "answers",
        "the file system is shared",
        "may use 2 CPUs, of 2 asked for",
        "sees 2 GPUs, of 2 asked for",
        "GPUs of 79.6 GiB, compute capability 9.0, driver 550.54.15",
        "see the same GPUs",
        "SIGUSR2 came",
        "requeued, and back on node",
    ):
        assert [text for word, text in lines if word == "ok" and told in text], (told, said)
    written = yaml.safe_load((desk.config / "lockstep" / "site.yaml").read_text())
    facts = {"gpu_memory": 79.6, "compute_capability": "9.0"}
    assert written == {"gpus": "gpus-per-node", "cpus_per_rank": 2} | facts  # 4 GPUs and 8 CPUs per node


def test_a_profile_that_stands_is_tried_and_kept(desk: Desk) -> None:
    """Behind a wrapper of sbatch that talks of other jobs."""
    text = "partition: main\ngpus: gres\ncpus_per_rank: 3\n"
    path = desk.profile("mine", text)
    desk.put_command("nvidia-smi", "echo 24268, 8.6, 535.1")
    desk.wrap_sbatch("NOTE: your last job 1 used 3 core hours")
    doctor = desk.start("--site", "mine")
    shorten(desk, doctor)
    said, wrong = doctor.communicate(timeout=120)
    assert doctor.returncode == 1, said + wrong
    assert "FAIL cpus_per_rank 3 × 4 GPUs > 8 CPUs; 2 fit" in said
    assert ", of 3 asked for" in said
    assert (
        f'the profile {path} stands as it is; write gpu_memory: 23.7 into it; write compute_capability: "8.6"' in said
    )
    assert path.read_text() == text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("partition: nope\n", "there is no 'nope'"),
        ("constraint: gold\n", "SLURM refuses"),
        ("partion: main\n", "partion"),
    ],
)
def test_a_wrong_profile_is_told(desk: Desk, text: str, said: str) -> None:
    desk.profile("wrong", text)
    doctor = desk.start("--site", "wrong")
    _, wrong = doctor.communicate(timeout=60)
    assert doctor.returncode == 2, wrong
    assert said in wrong
    assert "Traceback" not in wrong


def test_without_a_cluster_it_says_so(tmp_path: Path) -> None:
    done = subprocess.run([LOCKSTEP, "doctor", tmp_path], text=True, capture_output=True, env=ENVIRONMENT, timeout=60)
    assert done.returncode == 2
    assert "no SLURM cluster answers" in done.stderr
