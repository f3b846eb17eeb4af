"""What a GPU is asked, in one command of at most 9 minutes without network: `python -m bench.gpu [PART …]`.

Parts, in this order unless others are named: `cases`, random-weight UNets of Stable Diffusion 1.5, 2.1 and SDXL over
engines and micro-batches, each in a process of its own (bench/gpu_case.py); `tests`, those marked `gpu`; `compiled`,
the cases whose blocks torch.compile takes minutes for; `peer`, bench.peer. All of them together want 15 minutes: name
the later ones in a second command. Writes gpu-PART-DATE.json into $OUT, or into bench/results, after every case. A case
that fails, runs out of memory or out of time is recorded with what was found until then, and the next goes on. Latents
and text states come from memory, as with a cache of encodings; bench.peer runs VAE and text encoder too.

On a machine that has just started, the first program to use CUDA took 20 s for its first kernel and 23 s for its
imports: both read gigabytes of libraries from a cold disk. The measurement of the peak takes that first.

On a bare machine with torch and CUDA, packages that lack are installed from wheels: `--wheels FOLDER`. Fill it
elsewhere, for that machine's Python, with `pip download --no-deps --only-binary=:all: -d FOLDER` and the names in
NEEDED, and `DS_BUILD_OPS=0 pip wheel --no-deps -w FOLDER deepspeed==0.19.8 .` (the dot is Lockstep). `--device cpu
--tiny` runs all of it on a CPU, at a size that proves nothing but that it runs.

images/s   samples through forward, backward, clip, update and EMA per second, median over steps
MFU        the UNet's FLOPs (counted, forward and backward once) per second, per cent of a bf16 product of 8192 × 8192
           matrices measured in the same run
memory     peak of torch's allocator, beside what the plan tells
stall      seconds that the training thread spends in an async save's calls: the first save, and a later one
launches   kernels launched and waits for the device per step, from torch's profiler
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
# Seconds: of all, the tests, the comparison with the usual script, one case, one that compiles; and below which nothing
# begins.
BUDGET, TESTS_LIMIT, PEER_LIMIT, CASE_LIMIT, COMPILED_LIMIT, LEAST = 530, 260, 200, 100, 300, 20
# What a rank imports → what pip calls it, where that is another name.
NEEDED = {
    "accelerate": "accelerate",
    "annotated_types": "annotated-types",
    "click": "click",
    "cloudpickle": "cloudpickle",
    "cpuinfo": "py-cpuinfo",
    "deepspeed": "deepspeed",
    "diffusers": "diffusers",
    "einops": "einops",
    "hjson": "hjson",
    "huggingface_hub": "huggingface-hub",
    "hypothesis": "hypothesis",
    "importlib_metadata": "importlib-metadata",
    "kornia_rs": "kornia-rs",
    "msgpack": "msgpack",
    "ninja": "ninja",
    "numpy": "numpy",
    "peft": "peft",
    "PIL": "pillow",
    "psutil": "psutil",
    "pyarrow": "pyarrow",
    "pydantic": "pydantic",
    "pydantic_core": "pydantic-core",
    "pytest": "pytest",
    "rich": "rich",
    "safetensors": "safetensors",
    "submitit": "submitit",
    "tensorboard": "tensorboard",
    "tokenizers": "tokenizers",
    "transformers": "transformers",
    "typing_inspection": "typing-inspection",
    "yaml": "PyYAML",
}
Case = dict[str, Any]
PLAIN: Case = {"precision": "bf16", "compile": False, "gradient_checkpointing": False, "save": False, "accumulation": 1}
CASES: list[Case] = [
    {"unet": "sd15", "side": 64, "engine": "zero1", "micro_batch": 32, "save": True},
    {"unet": "sd15", "side": 64, "engine": "keep", "micro_batch": 32, "save": True},
    {"unet": "sdxl", "side": 128, "engine": "keep", "micro_batch": 8, "gradient_checkpointing": True},
    {"unet": "sd15", "side": 64, "engine": "zero0", "micro_batch": 8, "precision": "fp32"},
    {"unet": "sd15", "side": 64, "engine": "zero2", "micro_batch": 32},
    {"unet": "sd15", "side": 64, "engine": "keep", "micro_batch": 8},
    {"unet": "sd21", "side": 96, "engine": "keep", "micro_batch": 16},
]
COMPILED_CASES: list[Case] = [
    {"unet": "sd21", "side": 64, "engine": "keep", "micro_batch": 32, "compile": True},
    {"unet": "sd15", "side": 64, "engine": "zero1", "micro_batch": 32, "compile": True},
]
TINY_CASES: list[Case] = [
    {"unet": "tiny", "side": 8, "engine": "zero0", "micro_batch": 1, "precision": "fp32", "save": True},
    {"unet": "tiny", "side": 8, "engine": "keep", "micro_batch": 2, "save": True},
    {"unet": "tiny", "side": 8, "engine": "zero1", "micro_batch": 2, "gradient_checkpointing": True},
]
PEER = ["--unet", "sd15", "--resolution", "512", "--batch", "16", "--precision", "bf16", "--workers", "6"]
PEER += ["--settings", json.dumps({"compile": False})]  # it would take longer than all the rest
TINY_PEER = ["--resolution", "32", "--batch", "1"]


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all, unless some are named")
    parser.add_argument("--wheels", type=Path, help="folder of wheels for what this Python lacks")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="sizes for a CPU, and no comparison of speed")
    parser.add_argument("--seconds", type=int, default=BUDGET, help="time for everything")
    args = parser.parse_args(words)
    unknown = set(args.parts) - set(PARTS)
    if unknown:
        parser.error(f"{', '.join(sorted(unknown))}: no such part; there are {', '.join(PARTS)}")
    return args


def install_missing(wheels: Path | None) -> dict[str, str]:
    """Install what cannot be imported from `wheels` into a folder of its own; answers the environment that has it."""
    missing = [name for module, name in NEEDED.items() if importlib.util.find_spec(module) is None]
    try:
        version("lockstep")  # the checkout alone has no version
    except PackageNotFoundError:
        missing.append("lockstep")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    if not missing:
        return environment
    if wheels is None:
        sys.exit(f"{', '.join(missing)} cannot be imported here; pass --wheels with a folder that holds their wheels")
    site = tempfile.mkdtemp(prefix="site-")
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-compile"]
    subprocess.run([*command, "--find-links", wheels, "--target", site, *missing], check=True)
    sys.path.insert(0, site)
    return environment | {"PYTHONPATH": f"{ROOT}:{site}"}


class Session:
    """What was found, and the time that is left. Every word that it starts gets no more of it than that."""

    def __init__(self, args: argparse.Namespace, environment: dict[str, str], folder: Path):
        self.args, self.environment, self.folder = args, environment, folder
        self.began = time.monotonic()
        self.record: dict[str, Any] = {"options": {"device": args.device, "tiny": args.tiny}, "cases": []}

    def left(self) -> float:
        return self.args.seconds - (time.monotonic() - self.began)

    def run(self, words: list[str], limit: float) -> dict[str, Any]:
        """Run a Python program; answers how it ended, and the end of what it printed where it failed."""
        if self.left() < LEAST:
            return {"failed": "no time was left"}
        began = time.monotonic()
        log = self.folder / "log"
        with open(log, "w") as output:
            process = subprocess.Popen(
                [sys.executable, *words],
                cwd=ROOT,
                env=self.environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                code = process.wait(min(limit, self.left()))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, 9)  # its workers and ranks too
                process.wait()
                code = None
        ended: dict[str, Any] = {"took_s": round(time.monotonic() - began, 1)}
        text = log.read_text(errors="replace")
        if code is None:
            ended["failed"] = "took too long"
        elif code:
            ended["failed"] = "out of memory" if "OutOfMemoryError" in text else f"exit code {code}"
        return ended | ({"log": text[-6000:]} if "failed" in ended else {"printed": text[-6000:]})

    def measure(self, options: dict[str, Any], limit: float = CASE_LIMIT) -> dict[str, Any]:
        """What bench/gpu_case.py finds with `options`, or how it failed."""
        path = self.folder / "found.json"
        path.unlink(missing_ok=True)
        asked = options | {"device": self.args.device, "records": str(self.folder), "tiny": self.args.tiny}
        ended = self.run(["-m", "bench.gpu_case", json.dumps(asked)], limit)
        ended.pop("printed", None)
        return ended | (json.loads(path.read_text()) if path.exists() else {})

    def write(self) -> Path:
        from bench.machine import RESULTS, write_result

        self.record["took_s"] = round(time.monotonic() - self.began)
        name = "-".join(["gpu", *self.args.parts])
        return write_result(name, self.record, Path(os.environ.get("OUT") or RESULTS))


def describe(case: Case) -> str:
    words = [case["unet"], f"{case['side']}²", case["engine"], case["precision"], f"micro-batch {case['micro_batch']}"]
    return " ".join(words + [name for name in ("compile", "gradient_checkpointing") if case[name]])


def show(case: Case, found: dict[str, Any]) -> None:
    cells = [found["failed"]] if "failed" in found else []
    cells += [f"{found['images_per_s']['median']:.1f} images/s"] if "images_per_s" in found else []
    cells += [f"{found['mfu_pct']:.1f} % MFU"] if "mfu_pct" in found else []
    memory = found.get("memory", {})
    cells += [f"{name} {value / 2**30:.1f} GiB" for name, value in memory.items() if value is not None]
    cells += [f"{name} {value:,}" for name, value in found.get("counts", {}).items() if name in ("launches", "waits")]
    cells += [f"stall {found['save_stall_s']} s"] if "save_stall_s" in found else []
    print(f"{describe(case):<58} {', '.join(cells)}", flush=True)


def run_tests(session: Session) -> None:
    """Side by side where pytest-xdist is there: most of their time is imports."""
    beside = ["-n", "6"] if importlib.util.find_spec("xdist") else []
    tests = session.run(["-m", "pytest", "-v", "-m", "gpu", *beside, "tests/gpu"], TESTS_LIMIT)
    session.record["tests"] = tests
    print("\n".join(["tests:", *(tests.get("printed") or tests.get("log", "")).splitlines()[-8:]]), flush=True)


def run_cases(session: Session, cases: list[Case], limit: float = CASE_LIMIT) -> None:
    peak = session.record["peak"].get("tflops")
    for case in cases:
        options = PLAIN | case
        found = session.measure(options | {"mode": "case", "peak": peak}, limit)
        session.record["cases"].append({"case": options} | found)
        show(options, found)
        session.write()


def run_peer(session: Session) -> None:
    tiny = session.args.tiny
    size = ["--blocks", "2", "--block-steps", "2"] if tiny else ["--blocks", "4", "--block-steps", "5"]
    words = ["-m", "bench.peer", "--device", session.args.device, *(TINY_PEER if tiny else PEER), *size]
    session.record["peer"] = ended = session.run(words, PEER_LIMIT)
    print(ended.get("printed") or f"bench.peer: {ended['failed']}", flush=True)


def run_plain(session: Session) -> None:
    run_cases(session, TINY_CASES if session.args.tiny else CASES)


def run_compiled(session: Session) -> None:
    run_cases(session, [] if session.args.tiny else COMPILED_CASES, COMPILED_LIMIT)


PARTS = {"cases": run_plain, "tests": run_tests, "compiled": run_compiled, "peer": run_peer}


def main(words: list[str] | None = None) -> None:
    args = arguments(words)
    threads = "1" if args.device == "cpu" else "8"
    environment = install_missing(args.wheels) | {"DS_ACCELERATOR": args.device, "OMP_NUM_THREADS": threads}
    with tempfile.TemporaryDirectory() as folder:
        session = Session(args, environment, Path(folder))
        session.record["peak"] = session.measure({"mode": "peak"})
        print(f"peak: {session.record['peak']}", flush=True)
        for part in args.parts or PARTS:
            PARTS[part](session)
            session.write()
        print(f"{session.args.seconds - session.left():.0f} s → {session.write()}")


if __name__ == "__main__":
    main()
