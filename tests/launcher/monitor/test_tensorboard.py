"""`lockstep tensorboard`: what a browser shows of a run, and what it gets of one that went back."""

import contextlib
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
from torch.utils.tensorboard import SummaryWriter

from store.run.run_dir import RunDir
from tests.launcher.browser import Page
from tests.launcher.runs import Trained
from tests.shell import lockstep, started, until
from train.reporting.metrics_writer import FORMER_TAGS, MetricsWriter

PICTURE = "pictures/00 a red circle"


def report(run: RunDir, attempt: int, steps: range) -> None:
    """One report per step, one picture every fifth; values tell which attempt they come from."""
    writer = MetricsWriter(run, run.open_attempt(), steps.start)
    for step in steps:
        writer.write_scalars(step, {"loss/train": attempt + step / 1000, "optimizer/pre_clip_grad_norm": 0.1})
        if step % 5 == 0:
            writer.write_image(step, PICTURE, run.pictures_path / f"{step}.png", np.full((8, 8, 3), step, np.uint8))
    writer.close()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """Steps 1 … 100, then again from 61 to 200: of the pictures 40 are kept."""
    run = RunDir(tmp_path_factory.mktemp("runs") / "board")
    for number, steps in ((1, range(1, 101)), (2, range(61, 201))):
        report(run, number, steps)
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
        return self.get("images/images", run="board", tag=PICTURE) if PICTURE in tags.get("board", {}) else []

    def scalars(self) -> list[list[float]]:
        return self.get("scalars/scalars", run="board", tag="loss/train")


@contextlib.contextmanager
def serve(folder: Path, output: Path) -> Iterator[Board]:
    """The command, ended with Ctrl-C."""
    with started(output, "tensorboard", folder, "--port", 0) as process:
        until(lambda: "Ctrl-C stops it" in output.read_text() or process.poll() is not None, 60)
        found = re.search(r"http://127\.0\.0\.1:\d+/[\w-]{16}/", output.read_text())
        assert found, output.read_text()
        yield Board(found[0])
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
        assert psutil.wait_procs(children, timeout=10)[1] == [], "nothing keeps reading"
        assert "Traceback" not in output.read_text()


@pytest.fixture(scope="module")
def board(run: RunDir, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Board]:
    with serve(run.path, tmp_path_factory.mktemp("out") / "board.txt") as board:
        yield board


def look(address: str, profile: Path) -> Page:
    """The page once TensorBoard has read the run."""

    def page() -> Page | None:
        seen = Page(address, profile)
        return seen if seen.cards else None

    return until(page)


def test_it_opens_on_what_people_came_for(trained: Trained, tmp_path: Path) -> None:
    """The run by its name; of the tags the first two groups are open, and the checkpoints' counters are the last."""
    with serve(trained.run.path, tmp_path / "board.txt") as board:
        page = look(board.address, tmp_path / "profile")
        pictures = look(f"{board.address}?tagFilter=pictures", tmp_path / "profile").cards
    assert page.runs == ["trained"]
    pinned, *groups = page.groups
    assert pinned == "Pinned", "TensorBoard's own, where a person puts cards"
    assert groups == ["loss", "optimizer", "pictures", "throughput", "time", "totals", "usage", "writes"]
    assert page.cards == ["loss/train", "optimizer/lr", "optimizer/pre_clip_grad_norm", "optimizer/skipped"]
    assert pictures == ["pictures/00 a red circle", "pictures/01 a blue square"]


def test_every_picture_is_kept(board: Board) -> None:
    pictures = until(lambda: len(found := board.pictures()) == 40 and found, 60)
    assert [picture["step"] for picture in pictures] == list(range(5, 201, 5))


def test_the_curve_goes_forward_and_has_no_step_twice(board: Board) -> None:
    curve = until(lambda: len(found := board.scalars()) == 200 and found, 60)
    assert [(step, attempt_of(step, loss)) for _, step, loss in curve] == KEPT


def read_events(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0}).Reload()


def test_the_slow_loader_shows_the_same(run: RunDir) -> None:
    """`tensorboard --load_fast=false`, and whatever else reads events through TensorBoard's own Python."""
    events = read_events(run.tensorboard_path / "board")
    assert [(e.step, attempt_of(e.step, e.value)) for e in events.Scalars("loss/train")] == KEPT
    assert [event.step for event in events.Images(PICTURE)] == list(range(5, 201, 5))


def test_who_does_not_know_the_address_sees_nothing(board: Board) -> None:
    root = board.address.rsplit("/", 2)[0]
    for path in ("/", "/data/runs", "/data/plugin/scalars/tags", "/wrong-token-0000/data/runs"):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(root + path)
        assert refused.value.code == 404


def test_the_metrics_of_the_run_drop_what_was_rolled_back(run: RunDir) -> None:
    lines = [json.loads(line) for line in run.metrics_path.read_text().splitlines()]
    assert [(line["step"], attempt_of(line["step"], line["loss/train"])) for line in lines] == KEPT
    assert run.attempt(1).metrics_path.read_text().count("\n") == 100, "an attempt keeps what it reported"


def test_a_torn_last_line_does_not_stop_the_next_attempt(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "torn")
    report(run, 1, range(1, 4))
    run.metrics_path.write_text(run.metrics_path.read_text()[:-20])
    MetricsWriter(run, run.open_attempt(), 4).close()
    assert [json.loads(line)["step"] for line in run.metrics_path.read_text().splitlines()] == [1, 2]


def curve(events: EventAccumulator, tag: str) -> list[int]:
    return [event.step for event in events.Scalars(tag)]


def test_an_older_run_goes_on_in_its_own_curves(tmp_path: Path) -> None:
    """Its events lie in `tensorboard/` itself, and its tags are those of its day."""
    run = RunDir(tmp_path / "older")
    attempt = run.open_attempt()
    former = {"loss/train": 1.0, **dict.fromkeys(FORMER_TAGS.values(), 2.0)}
    board = SummaryWriter(str(run.tensorboard_path), purge_step=0)
    for step in (1, 2, 3):
        with open(run.metrics_path, "a") as metrics, open(attempt.metrics_path, "a") as own:
            for file in (metrics, own):
                file.write(json.dumps({"step": step, "time": 0.0, **former}) + "\n")
        for tag, value in former.items():
            board.add_scalar(tag, value, step)
    board.close()

    writer = MetricsWriter(run, run.open_attempt(), 3)
    for step in (3, 4):
        writer.write_scalars(step, {"loss/train": 1.5, **dict.fromkeys(FORMER_TAGS, 2.5)})
    writer.close()
    events = read_events(run.tensorboard_path)
    assert set(events.Tags()["scalars"]) == former.keys()
    assert all(curve(events, tag) == [1, 2, 3, 4] for tag in former)
    assert all(path.is_file() for path in run.tensorboard_path.iterdir()), "no second run beside it"
    lines = [json.loads(line) for line in run.metrics_path.read_text().splitlines()]
    assert [(line["step"], line["grad_norm"]) for line in lines] == [(1, 2.0), (2, 2.0), (3, 2.5), (4, 2.5)]
    assert all(line.keys() == former.keys() | {"step", "time"} for line in lines)


def test_a_run_that_was_moved_goes_on_in_its_own_curves(tmp_path: Path) -> None:
    report(RunDir(tmp_path / "first"), 1, range(1, 4))
    run = RunDir((tmp_path / "first").rename(tmp_path / "second"))
    report(run, 2, range(4, 6))
    assert [path.name for path in run.tensorboard_path.iterdir()] == ["first"]
    assert curve(read_events(run.tensorboard_path / "first"), "loss/train") == [1, 2, 3, 4, 5]


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
