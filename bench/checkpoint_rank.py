"""One rank of bench/checkpoint.py. Argument: the command's options as JSON, with `mode` and `folder`.

Modes: save (all contestants, round by round), memory (one save of `contestant` in a process of its own), same and other
(resume on this world).
"""

import json
import os
import shutil
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from torch.distributed.checkpoint import async_save

from bench.stage import NO_STOP, Stage, make_model, make_stage
from configs.schema import CheckpointConfig as Policy
from configs.solve.deepspeed import render_deepspeed
from store.checkpoint import checkpoints
from store.checkpoint.fragment_file import StoredFragment
from store.run.attempt_plan import AttemptPlan
from store.run.run_dir import Attempt, RunDir
from tests.tiny import make_images
from train import process_group
from train.checkpoint.restore import resume_run
from train.checkpoint.saver import Saver
from train.context import RankContext
from train.engines.base import WEIGHTS, Engine, Fragment
from train.progress import Progress

NEVER, ASYNC, SYNC = Policy(every_steps=None), Policy(every_steps=1), Policy(every_steps=1, mode="sync")
AFTER = 2  # steps that are made after a save at least, so that a copy behind them is waited for


class Bench:
    """One engine that trains on samples in memory, and everything that saves it."""

    def __init__(self, args: SimpleNamespace, world: process_group.World, stage: Stage):
        self.args, self.world, self.stage = args, world, stage
        self.folder = Path(args.folder)
        self.engine = stage.make_engine()
        self.batches = stage.in_memory()
        self.step_number = 0
        self.run = RunDir(self.folder / "run")
        self.plan = AttemptPlan(
            nodes=1,
            gpus_per_node=world.size,
            micro_batch=stage.plan.micro_batch,
            gradient_accumulation_steps=1,
            total_steps=10**6,
            model_folder="random",
            nonce="0" * 16,
            dataset_size=1,
            dataset_digest="",
        )

    def new_deepspeed(self, **changes: Any) -> deepspeed.DeepSpeedEngine:
        """DeepSpeed's own engine of the same UNet, without ours around it."""
        unet, rendered = self.stage.unet(), render_deepspeed(self.stage.config, self.stage.plan) | changes
        optimizer = self.stage.adamw(unet)
        engine, *_ = deepspeed.initialize(model=unet, optimizer=optimizer, config=rendered, dist_init_required=False)
        return engine

    def context(self) -> RankContext:
        """Of a new attempt; nobody stops it."""
        never = self.stage.config.model_copy(update={"checkpoint": NEVER})
        return RankContext(self.run, self.open_attempt(), self.plan, never, self.world, Progress(), NO_STOP)

    def objective(self, unet: Callable[..., Any]) -> torch.Tensor:
        """The loss of this step's micro-batch."""
        noise, timestep = self.batches[self.step_number % len(self.batches)][0]
        return self.stage.loss(unet, noise, timestep)

    def open_attempt(self) -> Attempt:
        if self.world.is_main_process:
            self.plan.write(self.run.open_attempt().plan_path)
        self.world.barrier()
        return self.run.attempts()[-1]

    def step(self, before_update: Callable[[], None] = lambda: None) -> float:
        """One step of one micro-batch; answers its seconds, from barrier to barrier."""
        began, _ = self.stage.clock()
        self.engine.backward(self.objective(self.engine))
        before_update()
        self.engine.step()
        self.step_number += 1
        return self.stage.clock()[0] - began


class Watch:
    """Adds up what the training thread spends in a save's calls."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def over(self, call: Callable[[], Any]) -> Any:
        began = time.perf_counter()
        try:
            return call()
        finally:
            self.seconds += time.perf_counter() - began


def ours(bench: Bench, saver: Saver, policy: Policy) -> dict[str, float]:
    """From the boundary that begins the save to the one that commits it, through the loop's own calls."""
    watch, began, beside = Watch(), time.perf_counter(), []
    saver.policy = policy
    watch.over(lambda: saver.after_step(bench.step_number, force=False, requested=False, skipped=False))
    saver.policy = NEVER
    while saver.in_flight is not None or len(beside) < AFTER:
        waited = watch.seconds
        seconds = bench.step(lambda: watch.over(saver.wait_for_copy))
        beside.append(seconds - (watch.seconds - waited))
        committing = saver.in_flight is not None
        watch.over(lambda: saver.after_step(bench.step_number, force=False, requested=False, skipped=False))
        if committing and saver.in_flight is None:
            committed = time.perf_counter()
    committed = began + watch.seconds if policy is SYNC else committed
    return {"stall_s": watch.seconds, "commit_s": committed - began, "beside_s": beside}


def by_deepspeed(bench: Bench, engine: deepspeed.DeepSpeedEngine) -> dict[str, float]:
    target = bench.folder / "deepspeed"
    watch = Watch()
    watch.over(lambda: engine.save_checkpoint(target, tag="kept"))
    return {
        "stall_s": watch.seconds,
        "commit_s": watch.seconds,
        "beside_s": [bench.step() for _ in range(AFTER)],
    }


def find_storage(engine: Engine, piece: StoredFragment) -> torch.Tensor:
    """The engine's own storage of weights, or of one of AdamW's moments, without a copy."""
    fragment = Fragment(piece.name, piece.offset, piece.length)
    if piece.kind == WEIGHTS:
        return engine.weights(fragment)
    place = engine._locate(fragment)
    [moment] = engine._find_values(place.owner, piece.kind).tensors
    return moment.view(-1).narrow(0, place.start, piece.length)


def dcp(bench: Bench, saver: Saver, group: Any) -> dict[str, float]:
    """The same fragments; a rank's own keys, as each rank owns what it saves."""
    watch, began, beside = Watch(), time.perf_counter(), []
    state = {f"{piece.key}:{bench.world.rank}": find_storage(bench.engine, piece) for piece in saver.state.pieces}
    call = lambda: async_save(state, checkpoint_id=bench.folder / "dcp", process_group=group)  # noqa: E731
    future: Future = watch.over(call)
    while bench.world.any_rank([not future.done()])[0] or len(beside) < AFTER:  # all ranks step equally often
        beside.append(bench.step())
    watch.over(future.result)
    return {"stall_s": watch.seconds, "commit_s": time.perf_counter() - began, "beside_s": beside}


def contestants(bench: Bench) -> dict[str, Callable[[], dict[str, float]]]:
    saver = Saver(bench.context(), bench.engine, None, None)
    theirs = bench.new_deepspeed()
    theirs.backward(bench.objective(theirs))
    theirs.step()  # makes its moments
    group = dist.new_group(backend="gloo")
    return {
        "ours async": lambda: ours(bench, saver, ASYNC),
        "ours sync": lambda: ours(bench, saver, SYNC),
        "DeepSpeed": lambda: by_deepspeed(bench, theirs),
        "DCP async": lambda: dcp(bench, saver, group),
    }


def clean(bench: Bench) -> None:
    """Take away what was saved and let the disk come to rest, so that no contestant pays for another."""
    bench.world.barrier()
    if bench.world.is_main_process:
        for name in ("run/checkpoints", "deepspeed", "dcp"):
            shutil.rmtree(bench.folder / name, ignore_errors=True)
        os.sync()
    bench.world.barrier()


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def save(bench: Bench) -> dict[str, Any]:
    """Every contestant in every round, in changing order; the last saves of ours and DeepSpeed's stay for the loads."""
    rows: dict[str, dict[str, Any]] = {}
    turns = contestants(bench)
    for _ in range(3):
        bench.step()
    bare = []
    for number in range(bench.args.rounds + 1):
        order = list(turns) if number % 2 else list(reversed(turns))
        for name in order:
            clean(bench)
            bare.append(bench.step())
            measured = turns[name]()
            if number == 0:  # warms up: buffers, threads, the disk's own state
                continue
            row = rows.setdefault(name, {"stall_s": [], "commit_s": [], "beside_s": []})
            row["stall_s"].append(bench.world.max([measured["stall_s"]])[0])
            row["commit_s"].append(bench.world.max([measured["commit_s"]])[0])
            row["beside_s"].append(measured["beside_s"])
            row["bytes"] = sum(size_of(bench.folder / part) for part in ("run/checkpoints", "deepspeed", "dcp"))
    median = statistics.median(bare)
    for row in rows.values():
        row["slowdown_s"] = [sum(beside) - len(beside) * median for beside in row["beside_s"]]
    clean(bench)
    for name in ("ours sync", "DeepSpeed"):
        turns[name]()
    saved = {name: rows[name] for name in turns}
    return {"saves": saved, "bare_step_s": median, "parameters": sum(bench.engine.sizes.values())}


def memory(bench: Bench) -> dict[str, Any]:
    """How far one save of one contestant lifts this process's peak of resident memory above a bare step's."""
    turn = contestants(bench)[bench.args.contestant]
    for _ in range(3):
        bench.step()
    peaks = []
    for part in (bench.step, turn):
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from here (proc(5))
        part()
        status = Path("/proc/self/status").read_text().splitlines()
        peaks.append(1024 * int(next(line for line in status if line.startswith("VmHWM")).split()[1]))
    return {"peak_bytes": int(bench.world.max([peaks[1] - peaks[0]])[0])}


def timed(bench: Bench, load: Callable[[], Any]) -> float:
    began, _ = bench.stage.clock()
    load()
    return bench.stage.clock()[0] - began


def ours_resumes(bench: Bench) -> float:
    context, newest = bench.context(), checkpoints.list_checkpoints(bench.run)[-1]

    def load() -> None:
        assert resume_run(context, bench.engine, None) == newest

    return timed(bench, load)


def same(bench: Bench) -> dict[str, float]:
    """On the world that saved."""
    ours_seconds = ours_resumes(bench)
    other = bench.new_deepspeed()
    seconds = timed(bench, lambda: other.load_checkpoint(bench.folder / "deepspeed", tag="kept"))
    return {"ours_same_s": ours_seconds, "deepspeed_same_s": seconds}


def other(bench: Bench) -> dict[str, float]:
    """On another world; DeepSpeed's checkpoint is converted by now."""
    ours_seconds = ours_resumes(bench)
    universal = bench.new_deepspeed(checkpoint={"load_universal": True})
    seconds = timed(bench, lambda: universal.load_checkpoint(bench.folder, tag="universal"))
    return {"ours_other_s": ours_seconds, "universal_load_s": seconds}


def main(options: str) -> None:
    args = SimpleNamespace(**json.loads(options))
    world = process_group.init_process_group(args.world_size)
    images = Path(args.folder, "images")
    if world.is_main_process and not images.exists():
        make_images(images, 16, 10 * args.side)
    world.barrier()
    stage = make_stage(args, world, make_model(args, torch.device("meta")), images)
    bench = Bench(args, world, stage)
    measured = {"save": save, "memory": memory, "same": same, "other": other}[args.mode](bench)
    if world.is_main_process:
        Path(args.folder, f"{args.mode}.json").write_text(json.dumps(measured))
    world.barrier()


if __name__ == "__main__":
    try:
        main(sys.argv[1])
        sys.stdout.flush()
        os._exit(0)  # threads of contestants may wait for ever
    except Exception:  # noqa: BLE001
        traceback.print_exc()
        os._exit(1)
