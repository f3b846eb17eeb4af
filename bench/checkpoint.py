"""What a save and a resume cost, beside DeepSpeed's and PyTorch's own: `python -m bench.checkpoint`.

About 8 minutes on two idle cores; prints tables, writes bench/results/checkpoint-DATE.json. On a CPU: a UNet of 110 M
random weights (Stable Diffusion 1.5's layout, narrower), fp32, one thread per rank. All contestants save weights and
moments of this UNet (no average: DeepSpeed keeps none), DeepSpeed those of an engine of its own beside ours; they take
turns round by round and write to the same disk.

ours async   checkpoint.mode async: copied while the next step's passes run, digested and fsynced behind the training
ours sync    checkpoint.mode sync: the same bytes, training stands still for all of it
DeepSpeed    engine.save_checkpoint: neither digests nor fsync
DCP async    torch.distributed.checkpoint.async_save of the same fp32 fragments, on a gloo group

stall        seconds the training thread spends in a save's calls, from the boundary that began it to its commit
slowdown     what the steps beside the write took longer than bare steps, all together: threads that copy and digest
             share the CPU with training, which a GPU's do not
memory       growth of the largest rank's peak resident memory over a bare step's
resume       from engine in place to state applied; ours reads and checks every digest. On another world size DeepSpeed
             needs its universal format: conversion and load, each stated
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from bench.machine import ROOT, run_ranks, write_result

STALL_AIM, ELASTIC_AIM = 1 / 20, 5.0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--ranks", type=int, default=2, help="world size that saves")
    parser.add_argument("--to", type=int, default=1, help="the other world size that resumes")
    parser.add_argument("--zero", type=int, default=2, choices=[1, 2, 3])
    parser.add_argument("--rounds", type=int, default=5, help="saves of each contestant")
    parser.add_argument(
        "--unet", choices=["small", "medium", "sd15"], default="medium", help="62, 110 or 860 M weights"
    )
    parser.add_argument("--side", type=int, default=16, help="side of the latents; images are 8 times as large")
    parser.add_argument("--micro-batch", type=int, default=1)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--disk", type=Path, help="folder to save in; a temporary one when left out")
    return parser.parse_args()


def run(args: argparse.Namespace, mode: str, ranks: int, folder: Path, contestant: str = "") -> dict[str, Any]:
    """Start `ranks` ranks of bench/checkpoint_rank.py in `mode`, and wait for what they measured."""
    shape = {
        "mode": mode,
        "world_size": ranks,
        "engine": f"zero{args.zero}",
        "folder": str(folder),
        "accumulation": 1,
        "warm": 0,
        "workers": 2,
    }
    options = vars(args) | shape | {"disk": None, "contestant": contestant}
    run_ranks("bench.checkpoint_rank", ranks, args.device, options, folder / f"{mode}.log")
    return json.loads((folder / f"{mode}.json").read_text())


def convert(folder: Path) -> float:
    """Seconds of DeepSpeed's own conversion to its universal format, without the start of its interpreter."""
    program = (
        "import sys, time, deepspeed; from deepspeed.checkpoint import ds_to_universal as d; "
        "sys.argv[1:] = sys.argv[2:]; a = d.parse_arguments(); t = time.perf_counter(); d.main(a); "
        "print('seconds', time.perf_counter() - t)"
    )
    source, target = folder / "deepspeed" / "kept", folder / "universal"
    options = ["--input_folder", source, "--output_folder", target, "--inject_missing_state"]
    command = [sys.executable, "-c", program, "convert", *map(str, options)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        sys.exit(done.stderr[-4000:])
    (folder / "latest_universal").write_text("universal")
    return float(done.stdout.split("seconds")[-1])


def show(saves: dict[str, Any], loads: dict[str, float], args: argparse.Namespace) -> dict[str, float]:
    bare = saves["DeepSpeed"]["stall_s"]
    print(
        f"\n{'save':<12}{'stall':>10}{'÷ DeepSpeed':>13}{'slowdown':>11}{'to commit':>11}{'on disk':>11}{'memory':>11}"
    )
    for name, row in saves.items():
        share = statistics.median(a / b for a, b in zip(row["stall_s"], bare, strict=True))
        cells = [statistics.median(row[key]) for key in ("stall_s", "slowdown_s", "commit_s")]
        sizes = f"{row['bytes'] / 2**20:>7.0f} MiB{row['peak_bytes'] / 2**20:>7.0f} MiB"
        print(f"{name:<12}{cells[0]:>8.3f} s{share:>13.3f}{cells[1]:>9.2f} s{cells[2]:>9.2f} s{sizes}")
    stall = statistics.median(a / b for a, b in zip(saves["ours async"]["stall_s"], bare, strict=True))
    print(f"\nresume, s    {args.ranks} → {args.ranks} ranks    {args.ranks} → {args.to} ranks")
    print(f"{'ours':<12}{loads['ours_same_s']:>10.2f}{loads['ours_other_s']:>16.2f}")
    universal = loads["convert_s"] + loads["universal_load_s"]
    parts = f"{loads['convert_s']:.2f} conversion + {loads['universal_load_s']:.2f} load"
    print(f"{'DeepSpeed':<12}{loads['deepspeed_same_s']:>10.2f}{universal:>16.2f}   ({parts})")
    elastic = universal / loads["ours_other_s"]
    print(f"\nasync stall ÷ engine.save_checkpoint: {stall:.4f} (aim ≤ {STALL_AIM})")
    print(f"elastic resume: {elastic:.1f} × faster than universal (aim ≥ {ELASTIC_AIM:g})")
    return {"async_stall_share": stall, "elastic_times_faster": elastic}


def main() -> None:
    args = arguments()
    began, load = time.perf_counter(), [os.getloadavg()[0]]
    with tempfile.TemporaryDirectory(dir=args.disk) as temporary:
        folder = Path(temporary)
        print(
            f"saving on {args.ranks} ranks, then resuming on {args.ranks} and on {args.to}; some minutes …",
            flush=True,
        )
        measured = run(args, "save", args.ranks, folder)
        loads = run(args, "same", args.ranks, folder)
        loads["convert_s"] = convert(folder)
        loads |= run(args, "other", args.to, folder)
        for name, row in measured["saves"].items():
            row |= run(args, "memory", args.ranks, folder, name)
    load.append(os.getloadavg()[0])
    answers = show(measured["saves"], loads, args)
    record = {"took_s": round(time.perf_counter() - began), "load": load}
    record |= {"options": {k: str(v) if k == "disk" else v for k, v in vars(args).items()}}
    record |= {**measured, "resume": loads, **answers}
    path = write_result("checkpoint", record)
    print(f"UNet {measured['parameters']:,} parameters; {record['took_s']} s, load {load} → {path}")


if __name__ == "__main__":
    main()
