"""What our loop costs beside a bare DeepSpeed loop, and that beside bare PyTorch: `python -m bench.step`.

About 8 minutes on two idle cores (`--ranks 1 --zero 2`: one minute); prints tables, writes
bench/results/step-DATE.json. On a CPU: a UNet of 62 M random weights (Stable Diffusion 1.5's layout, narrower), fp32,
one thread per rank. On GPUs: `--unet sd15 --side 64 --micro-batch 8 --precision bf16` takes the real one.

In one process group the three start from the same weights and take turns step by step, in changing order; an
opponent's step is timed on both sides of each of ours. A step is timed from barrier to barrier. Numbers are medians
of paired ratios [lower, upper quartile]. All three consume the same samples, and must end with the same losses.

ours      the real loop.train: samples from Stream through DataLoader workers, learning rate, Trainer.step, a report
          at every step (a run's default is every 10th), agreement on notices and saves, of which none comes; EMA on
          at every second step. Latents and text come ready from memory: VAE and text encoder, which the bare loops do
          not run, are timed apart
DS        bare DeepSpeed: the same engine config, samples in memory; forward, backward, engine.step
torch     forward, backward, clip_grad_norm_, AdamW; on several ranks DistributedDataParallel
ours/DS   our speed as a share of bare DeepSpeed's, aim 0.95; "CPU" is the same from CPU time, which other programs on
          the machine disturb less, and which waits (for workers, for other ranks) are not in; DS/torch likewise
DS/DS     bare DeepSpeed against its own next step: what the machine's noise alone makes of a ratio
parts     what our step does besides, each timed alone: ms, and per cent of our step. `samples` is the wait for the
          workers, `boundary` the agreement
"""

import argparse
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results"
AIM = 0.95
WARM = 2  # steps of each contestant that do not count: the optimizer's state and oneDNN's kernels are made there
# On a CPU DeepSpeed allocates and frees gigabytes in every step; fetching these pages from the kernel each time took up
# to half of it. With this malloc keeps them, as the GPU's allocator does; all three gain.
KEEP_PAGES = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**36)}
LOSS_TOLERANCE = {"fp32": 1e-4, "bf16": 5e-2}  # relative


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    numbers: dict[str, Any] = {"type": lambda text: [int(n) for n in text.split(",")], "metavar": "N,N"}
    parser.add_argument("--ranks", default=[1, 2], help="world sizes", **numbers)
    parser.add_argument("--zero", default=[0, 1, 2, 3], help="ZeRO stages", **numbers)
    parser.add_argument("--rounds", type=int, default=8, help="counted steps of each contestant")
    parser.add_argument("--unet", choices=["small", "sd15"], default="small", help="62 M or 860 M parameters")
    parser.add_argument("--side", type=int, default=16, help="side of the latents; images are 8 times as large")
    parser.add_argument("--micro-batch", type=int, default=1)
    parser.add_argument("--accumulation", type=int, default=1)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    if args.device == "cuda" and max(args.ranks) > torch.cuda.device_count():
        parser.error(f"--ranks {max(args.ranks)}, but there are {torch.cuda.device_count()} GPUs")
    return args


def measure(args: argparse.Namespace, ranks: int, zero: int) -> dict[str, Any]:
    """Start the ranks and wait for what they measured. Each ZeRO stage has its own: engines leave memory behind."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment |= {"DS_ACCELERATOR": args.device, "PYTHONWARNINGS": "ignore::FutureWarning"}
    if args.device == "cpu":
        environment |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **KEEP_PAGES}
    with tempfile.TemporaryDirectory() as records:
        options = vars(args) | {"world_size": ranks, "stage": zero, "records": records, "warm": WARM}
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
        command += ["-m", "bench.step_rank", json.dumps(options)]
        with open(Path(records, "log"), "w+") as log:
            done = subprocess.run(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)
            if done.returncode:
                log.seek(0)
                sys.exit(log.read()[-8000:])
        return json.loads(Path(records, "measured.json").read_text())


def spread(ratios: list[float]) -> dict[str, float]:
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return {"median": round(middle, 4), "low": round(low, 4), "high": round(high, 4), "pairs": len(ratios)}


def pairs(found: dict[str, Any]) -> dict[str, list[float]]:
    """The ratios of one ZeRO stage on one world, in the order they were run. Warm-up is left out."""
    seconds, cpu = ({name: [lap[i] for lap in laps[WARM:]] for name, laps in found["laps"].items()} for i in (0, 1))
    shares, cpu_shares = _around(seconds), _around(cpu)
    bare = seconds["deepspeed"]
    return {
        "ours/DS": shares[1::2],
        "ours+EMA/DS": shares[0::2],
        "ours/DS, CPU": cpu_shares[1::2],
        "DS/torch": [t / d for t, d in zip(seconds["torch"], bare, strict=True)],
        "DS/DS": [a / b for a, b in itertools.pairwise(bare)],
    }


def _around(times: dict[str, list[float]]) -> list[float]:
    """The mean of the bare steps before and after each of ours, as a share of it."""
    bare = [(before + after) / 2 for before, after in itertools.pairwise(times["deepspeed"])]
    return [b / o for b, o in zip(bare, times["ours"], strict=True)]


def loss_differences(precision: str, losses: dict[str, list[float]]) -> dict[str, float]:
    """How far ours ended from the others, relative; that the three did the same work."""
    found = {}
    for name in ("deepspeed", "torch"):
        found[name] = max(abs(a - b) / b for a, b in zip(losses["ours"], losses[name], strict=False))
        if found[name] > LOSS_TOLERANCE[precision]:
            sys.exit(f"ours and {name} did not do the same: {losses}")
    return found


def summary(precision: str, measured: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """One world: each stage's medians and ratios, and the ratios of all stages together."""
    stages, pooled = {}, {}
    for zero, found in measured.items():
        ratios = pairs(found)
        for name, values in ratios.items():
            pooled.setdefault(name, []).extend(values)
        times = {name: statistics.median(lap[0] for lap in laps[WARM:]) for name, laps in found["laps"].items()}
        stages[zero] = {
            "median_s": {name: round(value, 4) for name, value in times.items()},
            "ratios": {name: spread(values) for name, values in ratios.items()},
            "parts_ms": {name: round(1000 * value, 3) for name, value in found["parts"].items()},
            "parts_pct": {name: round(100 * value / times["ours"], 2) for name, value in found["parts"].items()},
            "laps_s_cpu_s": found["laps"],
            "loss_difference": loss_differences(precision, found["losses"]),
        }
    return {
        "zero": stages,
        "all": {name: spread(values) for name, values in pooled.items()},
        "encoding_ms_per_sample": {name: round(1000 * value, 2) for name, value in found["encoding"].items()},
    }


def show(ranks: int, world: dict[str, Any]) -> None:
    def cells(ratios: dict[str, dict[str, float]]) -> str:
        return "".join(f"  {r['median']:.3f} [{r['low']:.3f}, {r['high']:.3f}]" for r in ratios.values())

    names = list(world["all"])
    print(f"\n{f'{ranks} rank' + 's' * (ranks > 1):<10}{'DS step':>9}" + "".join(f"  {name:<20}" for name in names))
    for zero, row in world["zero"].items():
        print(f"{f'ZeRO {zero}':<10}{row['median_s']['deepspeed']:>7.2f} s{cells(row['ratios'])}")
    print(f"{'all':<19}{cells(world['all'])}")
    for zero, row in world["zero"].items():
        parts = "  ".join(f"{name} {ms:.2f} ({row['parts_pct'][name]:.2f} %)" for name, ms in row["parts_ms"].items())
        print(f"parts, ms, ZeRO {zero}: {parts}")
    print("apart, ms per sample: " + "  ".join(f"{k} {v:.1f}" for k, v in world["encoding_ms_per_sample"].items()))


def machine() -> dict[str, Any]:
    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    packages = ("torch", "deepspeed", "diffusers", "transformers", "numpy")
    models = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    return {
        "commit": git("rev-parse", "HEAD"),
        "changed": git("status", "--short", "train", "configs", "bench/step.py", "bench/step_rank.py").splitlines(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in packages},
        "cpu": models[0] if models else platform.machine(),
        "cpus": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def main() -> None:
    args = arguments()
    began, load = time.perf_counter(), [os.getloadavg()[0]]
    worlds, parameters = {}, 0
    for ranks in args.ranks:
        print(f"measuring on {ranks} rank{'s' * (ranks > 1)}, some minutes …", flush=True)
        measured = {zero: measure(args, ranks, zero) for zero in args.zero}
        worlds[ranks], parameters = summary(args.precision, measured), measured[args.zero[0]]["parameters"]
        show(ranks, worlds[ranks])
        load.append(os.getloadavg()[0])
    batch = f"micro-batch {args.micro_batch} × accumulation {args.accumulation}"
    print(f"\nUNet {parameters:,} parameters, {args.precision}, latents {args.side}², {batch}, {args.device}")
    for ranks, world in worlds.items():
        share = world["all"]["ours/DS"]["median"]
        print(f"ours/DS on {ranks} rank{'s' * (ranks > 1)}: {share:.3f} ({'≥' if share >= AIM else 'below'} {AIM})")
    now = datetime.now(UTC)
    path = RESULTS / f"step-{now:%Y-%m-%d}.json"
    RESULTS.mkdir(exist_ok=True)
    record = {"time": f"{now:%Y-%m-%dT%H:%M:%SZ}", "took_s": round(time.perf_counter() - began), "load": load}
    record |= {**machine(), "asked": vars(args), "parameters": parameters, "ranks": worlds}
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(f"{record['took_s']} s, load {load} → {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
