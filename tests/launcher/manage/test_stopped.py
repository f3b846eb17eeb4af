"""Every way in which a local run ends but the best one: asked to stop, with a dead rank, with an error."""

import contextlib
import math
import os
import pty
import re
import shutil
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from store.files import write_atomic
from store.run.run_dir import Attempt, RunDir
from tests.launcher.runs import CONFIG, LOCAL, REPORT, STEPS, Trained, board_of, end_of, make_run, metrics_of
from tests.shell import ENVIRONMENT, LOCKSTEP, ended, lockstep, processes_of, rank_of, started, until


class Stopped:
    """The same training, asked to stop before its rank had started, stopped by Ctrl-C on a terminal in mid-run on 2
    ranks, with `lockstep stop` behind it, then left alone to its end on 1. It exports the weights themselves, not their
    average."""

    def __init__(self, trained: Trained):
        file = trained.file.with_name("stopped.yaml")
        file.write_text(trained.file.read_text() + "export: raw\n")
        self.run = RunDir(trained.run.path.with_name("stopped"))
        words = ("submit", file, *LOCAL)
        with started(file.with_suffix(".early"), *words, 1) as process:
            until(self.run.attempt(1).plan_path.exists, 30)
            process.send_signal(signal.SIGUSR2)
            self.early = process.wait(120)
        self.left_early = processes_of(self.run.path)
        self.interrupted, self.screen = interrupted_on_a_terminal(self.run.attempt(2), *words, 2)
        self.left_interrupted = processes_of(self.run.path)
        write_atomic(self.run.stop_request_path, "Ada")
        self.last = lockstep(*words, 1)


def interrupted_on_a_terminal(attempt: Attempt, *words: object) -> tuple[int, str]:
    """Run the command on a terminal and press Ctrl-C once it has reported a step: its exit code, what was seen."""
    keyboard, terminal = pty.openpty()
    command = [LOCKSTEP, *map(str, words)]
    process = subprocess.Popen(command, env=ENVIRONMENT | {"TERM": "xterm"}, preexec_fn=lambda: os.login_tty(terminal))
    os.close(terminal)
    seen, pressed, deadline = b"", False, time.monotonic() + 120
    with ended(process):
        with contextlib.suppress(OSError):  # reading fails once nobody has the terminal any more
            while time.monotonic() < deadline and (chunk := os.read(keyboard, 4096)):
                seen += chunk
                if not pressed and metrics_of(attempt.metrics_path):
                    os.write(keyboard, b"\x03")
                    pressed = True
        os.close(keyboard)
        return process.wait(10), seen.decode()


@pytest.fixture(scope="module")
def stopped(trained: Trained) -> Stopped:
    return Stopped(trained)


def test_a_notice_before_the_ranks_have_started_ends_cleanly(stopped: Stopped) -> None:
    assert (stopped.early, stopped.left_early) == (75, [])
    end = end_of(stopped.run, 1)
    assert (end["reason"], end["step"]) == ("notice", 0)
    assert end["notice"].startswith("SIG")


def test_ctrl_c_on_a_terminal_stops_after_the_step(stopped: Stopped) -> None:
    assert (stopped.interrupted, stopped.left_interrupted) == (75, [])
    end = end_of(stopped.run, 2)
    assert (end["reason"], end["notice"]) == ("notice", "SIGUSR2")
    assert REPORT <= end["step"] < STEPS
    assert f"stopped on SIGINT after step {end['step']}; the same command resumes it" in stopped.screen


def test_a_terminal_shows_a_bar_and_the_logs_hold_none(stopped: Stopped) -> None:
    assert "━" in stopped.screen
    assert f"/{STEPS}" in stopped.screen
    assert "loss 0." in stopped.screen
    logs = list(stopped.run.path.glob("attempts/*/logs/*"))
    assert len(logs) == 3 + 4
    for log in logs:
        assert not set(log.read_text()) & {"\r", "\x1b", "━", "█"}, log


def test_the_same_command_goes_on_to_the_end(stopped: Stopped, trained: Trained) -> None:
    assert (stopped.last.returncode, stopped.last.stderr) == (0, ""), stopped.last
    assert "stopped: attempt 3 with 1 rank;" in stopped.last.stdout
    assert end_of(stopped.run, 3)["reason"] == "finished"
    losses = [line["loss/train"] for line in metrics_of(stopped.run.metrics_path)]
    assert losses == pytest.approx([line["loss/train"] for line in trained.metrics], rel=1e-4), "one curve on any shape"


def test_what_was_rolled_back_is_seen_once(stopped: Stopped) -> None:
    steps = list(range(REPORT, STEPS + 1, REPORT))
    assert metrics_of(stopped.run.attempt(2).metrics_path), "an attempt keeps what it reported"
    assert [line["step"] for line in metrics_of(stopped.run.metrics_path)] == steps
    board = board_of(stopped.run)
    assert [event.step for event in board.Scalars("loss/train")] == steps
    assert [event.step for event in board.Images("pictures/00 a red circle")] == [0, 20, STEPS]


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    return math.hypot(*((one[name] - other[name]).norm().item() for name in one))


def test_the_average_is_not_the_weights(stopped: Stopped, trained: Trained) -> None:
    """One run exported the average, the other the weights, which have gone further from the base."""
    folders = (trained.model, trained.run.pipeline_path, stopped.run.pipeline_path)
    base, average, raw = (load_file(folder / "unet/diffusion_pytorch_model.safetensors") for folder in folders)
    assert distance(average, raw) > 0.02 * distance(base, raw)
    assert distance(base, average) < distance(base, raw)
    assert "These are the weights themselves after" in (stopped.run.pipeline_path / "README.md").read_text()


@pytest.mark.faults
def test_a_rank_that_hangs_ends_the_run_and_is_named(model: Path) -> None:
    """It is stopped in mid-step, and nobody gives a notice."""
    file, run = make_run(model, "hangs", CONFIG.replace(f"steps: {STEPS}", "steps: 1_000_000\nhang_seconds: 8"))
    output, attempt = file.with_suffix(".out"), run.attempt(1)
    with started(output, "submit", file, *LOCAL, 2) as process:
        until(lambda: metrics_of(attempt.metrics_path))
        rank = rank_of(run.path, 1)
        assert rank is not None
        rank.suspend()
        assert process.wait(180) == 1
    assert processes_of(run.path) == [], "a stopped process is ended, too"
    last = output.read_text().splitlines()[-1]
    named = "rank 1 on \\S+ does not answer \\(last heartbeat \\d+ s ago\\): it is stopped by a signal.*"
    told = f"no rank made progress for \\d+ s: {named}; every rank's stacks are in {attempt.stacks_path}"
    assert re.search(told, last), output.read_text()
    why = lockstep("why", run.path).stdout.splitlines()
    assert re.fullmatch(f"attempt 1 of hangs: {told}", why[0])
    assert sorted(path.name for path in attempt.stacks_path.iterdir()) == ["rank-0000.txt", "rank-0001.txt"]


@pytest.mark.faults
def test_a_rank_that_is_aborted_is_told_with_its_last_words(model: Path) -> None:
    """As NCCL's watchdog ends a rank whose GPU is lost: it writes a line to the log, and no report can be written."""
    file, run = make_run(model, "aborted", CONFIG.replace(f"steps: {STEPS}", "steps: 1_000_000"))
    output, attempt = file.with_suffix(".out"), run.attempt(1)
    words = "Process group watchdog thread terminated with exception: CUDA error: uncorrectable ECC error encountered"
    with started(output, "submit", file, *LOCAL, 2) as process:
        until(lambda: metrics_of(attempt.metrics_path))
        rank = rank_of(run.path, 1)
        assert rank is not None
        with open(attempt.log_path(1), "a") as log:
            log.write(f"[PG ID 0 PG GUID 0(default_pg) Rank 1] {words}\n")
        rank.send_signal(signal.SIGABRT)
        assert process.wait(60) == 1
    told = "rank 1 was aborted: CUDA error: uncorrectable ECC error encountered; its last lines are in"
    assert f"{told} {attempt.log_path(1)}" in output.read_text(), output.read_text()
    log = attempt.log_path(1).read_text()
    assert "Fatal Python error: Aborted" in log
    assert "train/loop.py" in log, "with its stacks"


def test_a_dead_rank_ends_the_run_and_so_does_an_impatient_user(model: Path) -> None:
    """Two attempts of a run that would never end."""
    file, run = make_run(model, "endless", CONFIG.replace(f"steps: {STEPS}", "steps: 1_000_000"))
    words, output = ("submit", file, "report_every_steps=1", *LOCAL, 2), file.with_suffix(".out")

    with started(output, *words) as process:
        until(lambda: metrics_of(run.attempt(1).metrics_path))
        rank = until(lambda: rank_of(run.path, 1))
        rank.kill()
        assert process.wait(60) == 1
    until(lambda: processes_of(run.path) == [])  # nor are those left that decoded for the dead rank
    said = output.read_text()
    assert "rank 1 exited without an error report (SIGKILL or out of memory?)" in said
    assert f"its last lines are in {run.attempt(1).log_path(1)}" in said
    assert "Traceback" not in said
    assert not run.attempt(1).end_path.exists()

    with started(output, *words) as process:
        until(lambda: rank_of(run.path, 0))
        for notice in (signal.SIGTERM, signal.SIGINT):
            process.send_signal(notice)
        assert process.wait(60) == 1
    assert not metrics_of(run.attempt(2).metrics_path), "not only once the ranks have loaded and made a step"
    until(lambda: processes_of(run.path) == [])
    assert "stopped at once: asked twice" in output.read_text()


@pytest.fixture(scope="module")
def failed(model: Path) -> dict[str, tuple[subprocess.CompletedProcess[str], RunDir]]:
    """Two runs that fail in their ranks, side by side: on half an image, and on half a tokenizer."""
    truncated, images_run = make_run(model, "truncated")
    for image in (truncated.parent / "images").glob("*.png"):
        image.write_bytes(image.read_bytes()[:400])
    broken = shutil.copytree(model, model.with_name("broken"))
    (broken / "tokenizer/tokenizer.json").write_text('{"half')
    crashed, tokenizer_run = make_run(model, "crashed", CONFIG.replace("../model", "../broken"))
    with ThreadPoolExecutor() as pool:
        image, tokenizer = pool.map(
            lambda run: lockstep("submit", run[0], *LOCAL, run[1]), [(truncated, 1), (crashed, 2)]
        )
    return {"image": (image, images_run), "tokenizer": (tokenizer, tokenizer_run)}


def test_an_image_that_does_not_decode_ends_the_run_with_its_name(failed: Any) -> None:
    shell, run = failed["image"]
    assert shell.returncode == 2
    assert re.fullmatch(r"\S+\d\d\d\.png: does not decode \(.*\); fix or remove it, .*\n", shell.stderr)
    assert "decode" not in shell.stdout, "it is said once"
    assert "Traceback" not in shell.stdout + shell.stderr + run.attempt(1).log_path(0).read_text()
    assert not run.attempt(1).end_path.exists()
    assert processes_of(run.path) == []


def test_a_crash_shows_the_traceback_of_the_first_rank_and_its_log(failed: Any) -> None:
    shell, run = failed["tokenizer"]
    assert shell.returncode == 1
    assert "Traceback" not in shell.stdout, "it is said once"
    assert "train/models/stable_diffusion.py" in shell.stderr
    last = re.fullmatch(
        r"rank (\d) failed first(, and 1 more followed)?; its log is (.*)", shell.stderr.splitlines()[-1]
    )
    assert last, shell.stderr
    assert Path(last[3]) == run.attempt(1).log_path(int(last[1]))
    assert "Traceback" in Path(last[3]).read_text()
    assert processes_of(run.path) == []
