"""`lockstep tensorboard` on a run of two attempts, the second of which went back: what a browser would get."""

import json
import re
import signal
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from configs.solve.length import Length
from store.run.run_dir import RunDir
from tests.shell import lockstep, started, until
from train.reporting.metrics import MetricsWriter

LENGTH = Length(steps=200, batch=4, dataset=100)
PICTURE = "pictures/00 a red circle"


def report(sinks: MetricsWriter, attempt: int, steps: range, folder: Path) -> None:
    """One report per step, one picture every fifth; values tell which attempt they come from."""
    for step in steps:
        values = {"loss/train": attempt + step / 1000, "time/step_s": 0.1, "progress/epoch": step / 25}
        sinks.scalars(step, values | {"lr-AdamW/group0": 1e-4, "throughput/samples_per_sec": 40.0})
        if step % 5 == 0:
            sinks.picture(step, PICTURE, folder / f"{step}.png", np.full((8, 8, 3), step, np.uint8))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """Steps 1 … 100, then again from 61 to 200: of the pictures 40 are kept."""
    run = RunDir(tmp_path_factory.mktemp("runs") / "board")
    for number, steps in ((1, range(1, 101)), (2, range(61, 201))):
        sinks = MetricsWriter(run, run.open_attempt(), steps.start, LENGTH)
        report(sinks, number, steps, run.pictures)
        sinks.close()
    return run


KEPT = [(step, 1 if step <= 60 else 2) for step in range(1, 201)]  # step, and the attempt it is kept from


def attempt_of(step: int, loss: float) -> int:
    return round(loss - step / 1000)


class Board:
    """TensorBoard as a browser sees it."""

    def __init__(self, address: str):
        self.address = address

    def get(self, path: str, **query: object) -> Any:
        with urllib.request.urlopen(f"{self.address}data/plugin/{path}?{urllib.parse.urlencode(query)}") as answer:
            return json.load(answer)

    def pictures(self) -> list[dict[str, Any]]:
        tags = self.get("images/tags")
        return self.get("images/images", run=".", tag=PICTURE) if PICTURE in tags.get(".", {}) else []

    def scalars(self) -> list[list[float]]:
        return self.get("scalars/scalars", run=".", tag="loss/train")


@pytest.fixture(scope="module")
def board(run: RunDir, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Board]:
    """The command, ended with Ctrl-C."""
    output = tmp_path_factory.mktemp("out") / "board.txt"
    with started(output, "tensorboard", run.path, "--port", 0) as process:
        until(lambda: "Ctrl-C stops it" in output.read_text() or process.poll() is not None, 60)
        found = re.search(r"http://127\.0\.0\.1:\d+/[\w-]{16}/", output.read_text())
        assert found, output.read_text()
        yield Board(found[0])
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
        assert psutil.wait_procs(children, timeout=10)[1] == [], "nothing keeps reading"
        assert "Traceback" not in output.read_text()


def test_every_picture_is_kept(board: Board) -> None:
    pictures = until(lambda: len(found := board.pictures()) == 40 and found, 60)
    assert [picture["step"] for picture in pictures] == list(range(5, 201, 5))


def test_the_curve_goes_forward_and_has_no_step_twice(board: Board) -> None:
    curve = until(lambda: len(found := board.scalars()) == 200 and found, 60)
    assert [(step, attempt_of(step, loss)) for _, step, loss in curve] == KEPT


def test_the_slow_loader_shows_the_same(run: RunDir) -> None:
    """`tensorboard --load_fast=false`, and whatever else reads events through TensorBoard's own Python."""
    events = EventAccumulator(str(run.tensorboard), size_guidance={"scalars": 0, "images": 0}).Reload()
    assert [(e.step, attempt_of(e.step, e.value)) for e in events.Scalars("loss/train")] == KEPT
    assert [event.step for event in events.Images(PICTURE)] == list(range(5, 201, 5))


def test_who_does_not_know_the_address_sees_nothing(board: Board) -> None:
    root = board.address.rsplit("/", 2)[0]
    for path in ("/", "/data/runs", "/data/plugin/scalars/tags", "/wrong-token-0000/data/runs"):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(root + path)
        assert refused.value.code == 404


def test_the_metrics_of_the_run_drop_what_was_rolled_back(run: RunDir) -> None:
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    assert [(line["step"], attempt_of(line["step"], line["loss/train"])) for line in lines] == KEPT
    assert run.attempt(1).metrics.read_text().count("\n") == 100, "an attempt keeps what it reported"


def test_a_torn_last_line_does_not_stop_the_next_attempt(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "torn")
    sinks = MetricsWriter(run, run.open_attempt(), 1, LENGTH)
    report(sinks, 1, range(1, 4), run.pictures)
    sinks.close()
    run.metrics.write_text(run.metrics.read_text()[:-20])
    MetricsWriter(run, run.open_attempt(), 4, LENGTH).close()
    assert [json.loads(line)["step"] for line in run.metrics.read_text().splitlines()] == [1, 2]


def test_a_folder_without_events_and_a_taken_port(run: RunDir, board: Board, tmp_path: Path) -> None:
    empty = lockstep("tensorboard", tmp_path, "--port", 0)
    assert (empty.returncode, empty.stderr) == (
        2,
        f"{tmp_path}: holds no TensorBoard events yet; name a run's folder, or a folder of runs\n",
    )
    port = board.address.split(":")[2].split("/")[0]
    taken = lockstep("tensorboard", run.path, "--port", port)
    assert taken.returncode == 2
    assert taken.stderr.splitlines()[-1] == f"port {port} is taken; name another with --port, or 0 for any free one"
    assert "Traceback" not in taken.stderr
