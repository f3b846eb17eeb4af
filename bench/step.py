"""What our loop costs beside a bare loop of the same engine, and beside bare PyTorch: `python -m bench.step`.

About 12 minutes on two idle cores (`--ranks 1 --engines zero0`: one minute); prints tables, writes
bench/results/step-ranks-1-2-DATE.json. On a CPU: a UNet of 62 M random weights (Stable Diffusion 1.5's layout,
narrower), fp32, one thread per rank. On GPUs the real one: `--unet sd15 --side 64 --micro-batch 8 --precision bf16
--engines zero1,keep`.

In one process group the contestants start from the same weights and take turns step by step, in changing order; an
opponent's step is timed on both sides of each of ours. A step is timed from barrier to barrier. Numbers are medians
of paired ratios [lower, upper quartile]. All consume the same samples, and must end with the same losses.

engines     zero0 (torch's DistributedDataParallel) to zero3, and FSDP2: reshard, and keep (reshard: false)
ours        the real loop.run_steps: samples from Stream through DataLoader workers, learning rate, Trainer.step, a
            report at every step (a run's default is every 10th), agreement on notices and saves, of which none comes;
            EMA on at every second step. Latents and text come ready from memory: VAE and text encoder, which the bare
            loops do not run, are timed apart
bare        the least that trains with DeepSpeed or FSDP2 under the same settings: forward, backward, clip, update
torch       the same in PyTorch alone, on several ranks with DistributedDataParallel: what zero0 is measured against
ours/bare   our speed as a share of the bare loop's; "CPU" is the same from CPU time, which other programs on the
            machine disturb less, and which waits (for workers, for other ranks) are not in; bare/torch likewise
bare/bare   the bare loop against its own next step: what the machine's noise alone makes of a ratio
parts       what our step does besides, each timed alone: ms, and per cent of our step. `samples` is the wait for the
            workers, `boundary` the agreement
counts      what one step asks of torch, on rank 0 (bench/counters.py); ours with EMA
"""

import argparse
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from bench.machine import run_ranks, summarize, write_result

ENGINES = ("zero0", "zero1", "zero2", "zero3", "reshard", "keep")
GROUPS = {"DeepSpeed": ("zero1", "zero2", "zero3"), "FSDP2": ("reshard", "keep")}
AUTO = {"fp32": "zero0", "bf16": "zero1"}  # what `zero: auto` picks for a model that fits
BARE_AIM, TORCH_AIM = 0.97, 0.95
WARM = 2  # steps of each contestant that do not count: the optimizer's state and oneDNN's kernels are made there
LOSS_TOLERANCE = {"fp32": 1e-4, "bf16": 5e-2}  # relative


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--ranks", default=[1, 2], type=lambda text: [int(n) for n in text.split(",")], metavar="N,N")
    parser.add_argument("--engines", default=list(ENGINES), type=lambda text: text.split(","), metavar="NAME,NAME")
    parser.add_argument("--rounds", type=int, default=8, help="counted steps of each contestant")
    parser.add_argument("--unet", choices=["tiny", "small", "sd15"], default="small", help="62 M or 860 M parameters")
    parser.add_argument("--side", type=int, default=16, help="side of the latents; images are 8 times as large")
    parser.add_argument("--micro-batch", type=int, default=1)
    parser.add_argument("--accumulation", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2, help="processes per rank that decode our samples")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    if unknown := set(args.engines) - set(ENGINES):
        parser.error(f"--engines {','.join(unknown)}: there are {', '.join(ENGINES)}")
    if args.device == "cuda" and max(args.ranks) > torch.cuda.device_count():
        parser.error(f"--ranks {max(args.ranks)}, but there are {torch.cuda.device_count()} GPUs")
    return args


def measure(args: argparse.Namespace, ranks: int, engine: str) -> dict[str, Any]:
    """Start the ranks and wait for what they measured. Each engine has its own: engines leave memory behind."""
    with tempfile.TemporaryDirectory() as records:
        options = vars(args) | {"world_size": ranks, "engine": engine, "records": records, "warm": WARM}
        run_ranks("bench.step_rank", ranks, args.device, options, Path(records, "log"))
        return json.loads(Path(records, "measured.json").read_text())


def pairs(found: dict[str, Any]) -> dict[str, list[float]]:
    """The ratios of one engine on one world, in the order they were run. Warm-up is left out."""
    seconds, cpu = ({name: [lap[i] for lap in laps[WARM:]] for name, laps in found["laps"].items()} for i in (0, 1))
    bare = "bare" if "bare" in seconds else "torch"
    shares, cpu_shares, torch_shares = (
        _around(seconds[bare], seconds["ours"]),
        _around(cpu[bare], cpu["ours"]),
        _around(seconds["torch"], seconds["ours"]),
    )
    return {
        "ours/bare": shares[1::2],
        "ours+EMA/bare": shares[0::2],
        "ours/bare, CPU": cpu_shares[1::2],
        "ours+EMA/torch": torch_shares[0::2],
        "bare/torch": [t / b for t, b in zip(seconds["torch"], seconds[bare], strict=True)],
        "bare/bare": [a / b for a, b in itertools.pairwise(seconds[bare])],
    }


def _around(opponent: list[float], ours: list[float]) -> list[float]:
    """The mean of the opponent's steps before and after each of ours, as a share of it."""
    means = [(before + after) / 2 for before, after in itertools.pairwise(opponent)]
    return [mean / own for mean, own in zip(means, ours, strict=True)]


def loss_differences(precision: str, losses: dict[str, list[float]]) -> dict[str, float]:
    """How far ours ended from the others, relative; that all did the same work."""
    found = {}
    for name in losses.keys() - {"ours"}:
        found[name] = max(abs(a - b) / b for a, b in zip(losses["ours"], losses[name], strict=False))
        if not found[name] <= LOSS_TOLERANCE[precision]:
            sys.exit(f"ours and {name} did not do the same: {losses}")
    return found


def summary(precision: str, measured: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """One world: each engine's medians, ratios and counts, and what is asked of all of them together."""
    engines, ratios = {}, {}
    for name, found in measured.items():
        ratios[name] = pairs(found)
        times = {who: statistics.median(lap[0] for lap in laps[WARM:]) for who, laps in found["laps"].items()}
        engines[name] = {
            "median_s": {who: round(value, 4) for who, value in times.items()},
            "ratios": {ratio: summarize(values) for ratio, values in ratios[name].items()},
            "parts_ms": {part: round(1000 * value, 3) for part, value in found["parts"].items()},
            "parts_pct": {part: round(100 * value / times["ours"], 2) for part, value in found["parts"].items()},
            "counts": found["counts"],
            "laps_s_cpu_s": found["laps"],
            "loss_difference": loss_differences(precision, found["losses"]),
        }
        encoding = {part: round(1000 * value, 2) for part, value in found["encoding"].items()}
    return {
        "engines": engines,
        "answers": answers(precision, ratios),
        "encoding_ms_per_sample": encoding,
    }


def answers(precision: str, ratios: dict[str, dict[str, list[float]]]) -> dict[str, dict[str, float]]:
    """What the issue of speed comes down to; each has its aim."""
    found = {}
    for library, names in GROUPS.items():
        pooled = [value for name in names if name in ratios for value in ratios[name]["ours/bare"]]
        if pooled:
            found[f"ours / bare {library}"] = summarize(pooled) | {"aim": BARE_AIM}
    auto = AUTO[precision]
    if auto in ratios:
        found[f"ours with EMA, zero: auto ({auto}) / bare PyTorch"] = summarize(ratios[auto]["ours+EMA/torch"]) | {
            "aim": TORCH_AIM
        }
    return found


def show(ranks: int, world: dict[str, Any]) -> None:
    names = list(next(iter(world["engines"].values()))["ratios"])
    label = f"{ranks} rank" + "s" * (ranks > 1)
    print(f"\n{label:<12}{'ours':>8}  " + "".join(f"  {name:<20}" for name in names))
    for engine, row in world["engines"].items():
        cells = "".join(f"  {r['median']:.3f} [{r['low']:.3f}, {r['high']:.3f}]" for r in row["ratios"].values())
        print(f"{engine:<12}{row['median_s']['ours']:>7.2f} s{cells}")
    for engine, row in world["engines"].items():
        parts = "  ".join(f"{part} {ms:.2f} ({row['parts_pct'][part]:.2f} %)" for part, ms in row["parts_ms"].items())
        print(f"parts, ms, {engine}: {parts}")
    print("apart, ms per sample: " + "  ".join(f"{k} {v:.1f}" for k, v in world["encoding_ms_per_sample"].items()))
    columns = list(next(iter(world["engines"].values()))["counts"]["ours"])
    print(f"{'counts':<20}" + "".join(f"{column:>18}" for column in columns))
    for engine, row in world["engines"].items():
        for who, found in row["counts"].items():
            print(f"{engine + ', ' + who:<20}" + "".join(f"{value:>18,}" for value in found.values()))


def main() -> None:
    args = arguments()
    began, load = time.perf_counter(), [os.getloadavg()[0]]
    worlds, parameters = {}, 0
    for ranks in args.ranks:
        print(f"measuring on {ranks} rank{'s' * (ranks > 1)}, some minutes …", flush=True)
        measured = {engine: measure(args, ranks, engine) for engine in args.engines}
        worlds[ranks], parameters = summary(args.precision, measured), measured[args.engines[0]]["parameters"]
        show(ranks, worlds[ranks])
        load.append(os.getloadavg()[0])
    batch = f"micro-batch {args.micro_batch} × accumulation {args.accumulation}"
    print(f"\nUNet {parameters:,} parameters, {args.precision}, latents {args.side}², {batch}, {args.device}")
    for ranks, world in worlds.items():
        for name, row in world["answers"].items():
            verdict = "reached" if row["median"] >= row["aim"] else "not reached"
            spread = f"{row['median']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
            print(f"{name}, {ranks} rank{'s' * (ranks > 1)}: {spread} (aim {row['aim']}: {verdict})")
    record = {"took_s": round(time.perf_counter() - began), "load": load, "options": vars(args)}
    record |= {"parameters": parameters, "ranks": worlds}
    name = "step-ranks-" + "-".join(map(str, args.ranks))
    print(f"{record['took_s']} s, load {load} → {write_result(name, record)}")


if __name__ == "__main__":
    main()
