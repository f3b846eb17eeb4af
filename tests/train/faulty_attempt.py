"""One rank of a real attempt, with faults: the program that the fault tests run.

Arguments: the run's folder, the attempt's number, and a fault as JSON, or {}:
rank, call (open, write, fsync, replace, rename, remove), on (a regular expression for the path), count (which call of
them), when (before, after), and do (kill, slow, hang, full, or wait, which goes on once the file `gate` is there). A
file `fired` in the attempt's folder says that it did.

Beside it, or alone, {"nan_at": [positions]} makes the loss of every micro-batch that holds one of them NaN, on
whichever rank, {"infinite_gradient_at": [positions]} makes only its gradient infinite,
{"spoil_average_after": step} writes a NaN into rank 1's average, {"export_waits_for": path} exports once that is there,
{"undo_step": step} takes back what that step does to weights and optimizer, {"fail_copies": true} lets rank 1's first
copy for a save fail as on a broken GPU, and its second one for want of memory, {"loop_at": step} lets rank 1 go round
in circles in that step, {"slow_at": {step: seconds}} makes those steps slow on rank 1, {"slow_save": seconds} every
write of a part of a checkpoint, and {"flip": [rank, step]} flips one bit of what that rank holds as all others do,
after that step.

Every rank also writes down the positions it consumes, step by step.
"""

import builtins
import contextlib
import errno
import json
import os
import re
import signal
import sys
import time
from functools import partial
from pathlib import Path

import torch
from deepspeed.accelerator import get_accelerator

import train.attempt
from store.checkpoint import checkpoints, fragment_file
from store.run.run_dir import Attempt, RunDir
from train.checkpoint.snapshot import Snapshot
from train.engines.ema import Ema
from train.step import Trainer
from train.stop_signal import StopSignal

SLOW = 0.3  # seconds that a slow rank takes longer for each call


def install(fault: dict, attempt: Attempt) -> None:
    """Make the file operations of this rank fail where the fault says."""
    change_losses(set(fault.get("nan_at", ())), lambda loss: loss * float("nan"))
    change_losses(set(fault.get("infinite_gradient_at", ())), InfiniteGradient.apply)
    if "undo_step" in fault:
        undo_step(fault["undo_step"])
    if "spoil_average_after" in fault:
        spoil_average(fault["spoil_average_after"])
    if fault.get("fail_copies"):
        fail_copies()
    if "loop_at" in fault or "slow_at" in fault:
        delay_steps(fault.get("loop_at"), fault.get("slow_at", {}))
    if "slow_save" in fault:
        delay_writes(fault["slow_save"])
    if "flip" in fault:
        flip_bit(*fault["flip"])
    if "export_waits_for" in fault:
        delay_export(Path(fault["export_waits_for"]))
    if "rank" not in fault or fault["rank"] != int(os.environ["RANK"]):
        return
    seen = 0

    def strike(path: object) -> None:
        nonlocal seen
        if re.search(fault["on"], str(path)):
            seen += 1
            if seen == fault["count"]:
                (attempt.path / "fired").touch()
            if fault["do"] == "slow":
                time.sleep(SLOW)
            elif seen == fault["count"]:
                if fault["do"] == "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                if fault["do"] == "hang":
                    time.sleep(3600)
                if fault["do"] == "wait":
                    return wait_for(Path(fault["gate"]))
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    def struck(original):
        def call(target, *arguments, **keywords):
            path = path_of(target)
            if fault["when"] == "before":
                strike(path)
            result = original(target, *arguments, **keywords)
            if fault["when"] == "after":
                strike(path)
            return result

        return call

    module, name = {
        "open": (builtins, "open"),
        "write": (fragment_file, "_write_all"),
        "fsync": (os, "fsync"),
        "replace": (os, "replace"),
        "rename": (os, "rename"),
        "remove": (checkpoints, "remove_checkpoint"),
    }[fault["call"]]
    setattr(module, name, struck(getattr(module, name)))


class InfiniteGradient(torch.autograd.Function):
    """The same loss, and a gradient as of an overflow in the backward pass."""

    @staticmethod
    def forward(_, loss):
        return loss.clone()

    @staticmethod
    def backward(_, gradient):
        return gradient * float("inf")


def change_losses(positions: set[int], change) -> None:
    """As a broken sample or a broken GPU does, in the micro-batches that hold one of `positions`."""
    original = Trainer.micro_loss

    def micro_loss(self, micro_batch):
        loss = original(self, micro_batch)
        return change(loss) if positions & set(micro_batch["position"].tolist()) else loss

    Trainer.micro_loss = micro_loss


def undo_step(number: int) -> None:
    """What a skipped step must come to, by another way: through the seam, and with a gradient that is finite."""
    original = Trainer.step

    def step(self, now, *rest):
        if now != number:
            return original(self, now, *rest)
        engine, closed = self.engine, []
        before, counters = copy_state(engine), engine.counters(now - 1)
        close = engine.step

        def close_and_undo():
            close()
            closed.append(True)
            if len(closed) == engine.accumulation:
                for key, values in before.items():
                    engine.load(key, partial(read_part, values))
                engine.publish()
                engine.set_counters(now, counters)

        engine.step = close_and_undo
        try:
            return original(self, now, *rest)
        finally:
            del engine.step

    Trainer.step = step


def copy_state(engine) -> dict:
    """What this rank holds, by key and fragment."""
    state = {key: {fragment: torch.empty(fragment.length) for fragment in engine.held} for key in engine.state_keys}
    for key, values in state.items():
        for fragment, out in values.items():
            engine.read(key, fragment, out)
    return state


def read_part(values: dict, name: str, offset: int, length: int) -> torch.Tensor:
    [(fragment, whole)] = [(f, v) for f, v in values.items() if f.name == name and 0 <= offset - f.offset < f.length]
    return whole.narrow(0, offset - fragment.offset, length)


def spoil_average(after: int) -> None:
    original = Ema.update

    def update(self, step):
        original(self, step)
        if step == after and os.environ["RANK"] == "1":
            self.averages[0][0] = float("nan")

    Ema.update = update


def fail_copies() -> None:
    errors = [RuntimeError("CUDA error: an illegal memory access was encountered"), MemoryError()]
    original = Snapshot._copy

    def copy(self):
        if errors and os.environ["RANK"] == "1":
            raise errors.pop(0)
        original(self)

    Snapshot._copy = copy


def delay_steps(loops: int | None, seconds: dict[str, float]) -> None:
    """On rank 1, in its micro-batches' passes. A step has 12 positions, as in tests/runs.py."""
    original = Trainer.micro_loss

    def micro_loss(self, micro_batch):
        step = int(micro_batch["position"][0]) // 12 + 1
        if os.environ["RANK"] == "1":
            while step == loops:
                pass
            time.sleep(seconds.get(str(step), 0))
        return original(self, micro_batch)

    Trainer.micro_loss = micro_loss


def delay_writes(seconds: float) -> None:
    """As of a slow disk."""
    original = Snapshot._run

    def run(self):
        time.sleep(seconds)
        original(self)

    Snapshot._run = run


def flip_bit(rank: int, after: int) -> None:
    """The lowest bit of the last element."""
    original = Trainer.step

    def step(self, number, *rest):
        result = original(self, number, *rest)
        if number == after and int(os.environ["RANK"]) == rank:
            last = self.engine.replicas()[-1].view(-1)[-1:]
            last.view({2: torch.int16, 4: torch.int32}[last.element_size()]).bitwise_xor_(1)
        return result

    Trainer.step = step


def wait_for(gate: Path) -> None:
    while not gate.exists():
        time.sleep(0.05)


def delay_export(gate: Path) -> None:
    """As of a large model, or a slow disk."""
    original = train.attempt.export_run

    def export_run(*arguments):
        wait_for(gate)
        original(*arguments)

    train.attempt.export_run = export_run


def path_of(target: object) -> str:
    """The path behind a path, an open file, a descriptor or a checkpoint."""
    if isinstance(target, checkpoints.Checkpoint):
        return str(target.path)
    if isinstance(target, Path):
        return str(target)
    if hasattr(target, "name"):
        return str(target.name) if not isinstance(target.name, int) else os.readlink(f"/proc/self/fd/{target.name}")
    return os.readlink(f"/proc/self/fd/{target}") if isinstance(target, int) else str(target)


def write_positions(run: RunDir, number: str) -> None:
    log = open(run.path / f"positions-{number}-{os.environ['RANK']}", "a", buffering=1)  # noqa: SIM115
    original = Trainer.step

    def step(self, of, rate, micro_batches, before_update):
        def watched():
            for micro_batch in micro_batches:
                with contextlib.suppress(OSError):  # on a disk that a test has filled
                    print(json.dumps([of, micro_batch["position"].tolist()]), file=log)
                yield micro_batch

        return original(self, of, rate, watched(), before_update)

    Trainer.step = step


def main(run_dir: str, number: str, fault: str) -> None:
    run = RunDir(Path(run_dir))
    notice = StopSignal()
    write_positions(run, number)
    attempt = run.attempt(int(number))
    get_accelerator().is_fp16_supported = lambda: True  # torch computes fp16 on a CPU, if slowly
    install(json.loads(fault), attempt)
    end = train.attempt.run_attempt(run, attempt, notice)
    sys.stdout.flush()
    os._exit(end.exit_code)


if __name__ == "__main__":
    main(*sys.argv[1:])
