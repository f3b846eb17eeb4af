"""Real runs of the local backend, which several tests look at."""

import fcntl
import json
from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from store.run.run_dir import RunDir
from tests.impostors import write_impostors
from tests.shell import lockstep
from tests.tiny import make_images
from train.engines import cpu_extension

STEPS, REPORT = 30, 5
CONFIG = f"""\
model: ../model
data: {{images: ./images, resolution: 32, crop: random, flip: true, workers: 1}}
batch: 2
micro_batch: 1
steps: {STEPS}
lr: 1e-3
prediction: v_prediction
zero: 2
ema: true
report_every_steps: {REPORT}
pictures: {{every_steps: 20, prompts: [a red circle, a blue square], timesteps: 2}}
"""
LOCAL = ("--local", "--ranks")


def make_run(model: Path, name: str, config: str = CONFIG) -> tuple[Path, RunDir]:
    """A folder with a config and its images, and the run that will come of them."""
    folder = model.parent / name
    make_images(folder / "images")
    (folder / f"{name}.yaml").write_text(config)
    return folder / f"{name}.yaml", RunDir(folder / "runs" / name)


def metrics_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def end_of(run: RunDir, attempt: int) -> dict[str, Any]:
    end: dict[str, Any] = json.loads(run.attempt(attempt).end_path.read_text())
    return end


def board_of(run: RunDir) -> EventAccumulator:
    return EventAccumulator(
        str(run.tensorboard_path / run.path.name), size_guidance={"scalars": 0, "images": 0}
    ).Reload()


class Trained:
    """A run on 2 ranks to its end, under adverse circumstances: packages named like ours lie in the working directory
    and on PYTHONPATH, behind a lock that a killed compiler left, on a dataset with a hole and two broken images."""

    def __init__(self, model: Path):
        self.model = model
        self.file, self.run = make_run(
            model, "trained", CONFIG.replace("workers: 1", "workers: 1, on_bad_sample: skip")
        )
        images = self.file.parent / "images"
        (images / "000.png").unlink()
        (images / "001.png").write_text("this is no image")
        whole = (images / "002.png").read_bytes()
        (images / "002.png").write_bytes(whole[: len(whole) // 2])
        hostile = write_impostors(self.file.parent / "hostile")
        leave_a_stale_lock()
        self.ended = lockstep("submit", self.file, *LOCAL, 2, cwd=hostile, PYTHONPATH=str(hostile))
        self.attempt = self.run.attempt(1)
        self.metrics = metrics_of(self.run.metrics_path)


def leave_a_stale_lock() -> None:
    """As a killed build leaves it; nobody else is building meanwhile."""
    build = cpu_extension.make_extension_folder() / "deepspeed_shm_comm"
    build.mkdir(parents=True, exist_ok=True)
    with open(cpu_extension.extension_folder() / ".flock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        (build / "lock").touch()
