"""Our side of bench/data.py: the index and the stream, as a rank has them. Argument: options as JSON."""

import gc
import itertools
import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow  # noqa: F401  (what is imported when it is first needed is here, too, before the clock runs)
import torch

import store.dataset.headers  # noqa: F401
import train.data.stream
from bench.turns import Turns
from configs.schema import RunConfig
from configs.solve.batch import BatchPlan, Shape
from configs.solve.buckets import CropSize
from store.dataset.build import build_index
from store.dataset.index import Index
from store.dataset.kept_index import KeptIndex, name_index_folder
from store.dataset.sources.image_folder import ImageFolder
from store.run.attempt_plan import AttemptPlan
from store.run.run_dir import RunDir
from train.context import RankContext
from train.data.encodings import NOTHING_KEPT, Encodings
from train.data.images import load_crop, scale_pixels
from train.data.stream import Stream, micro_batches
from train.encode.stage import encode_dataset
from train.models import load_model
from train.models.base import DiffusionModel
from train.process_group import init_process_group
from train.progress import Progress
from train.stop_signal import StopSignal


def make_config(args: SimpleNamespace) -> RunConfig:
    data = {"images": args.images, "resolution": args.side, "flip": True, "workers": args.workers}
    data |= {"cache": "latents" if args.encoded else "off", "cache_folder": args.cache}
    return RunConfig(
        name="data",
        model=args.model,
        data=data,
        batch=args.batch,
        micro_batch=args.batch,
        steps=10**9,
        precision="fp32",
    )


def keep_index_of(args: SimpleNamespace) -> KeptIndex:
    source = ImageFolder(Path(args.images))
    return build_index([source], name_index_folder(Path(args.cache), source.identity))


def open_once(args: SimpleNamespace) -> dict[str, float]:
    """Seconds until the index is open, and until the first sample is there: as `submit` opens it, which looks at every
    file; and as a rank does, to which submit hands its path."""
    config = make_config(args)
    began = time.perf_counter()
    kept = keep_index_of(args)
    opened = time.perf_counter() - began
    _load_first(kept.index, config)
    first = time.perf_counter() - began
    assert kept.path is not None
    began = time.perf_counter()
    index = Index.open_file(kept.path)
    rank_opened = time.perf_counter() - began
    _load_first(index, config)
    rank_first = time.perf_counter() - began
    return {"open": opened, "first sample": first, "rank: open": rank_opened, "rank: first sample": rank_first}


def _load_first(index: Index, config: RunConfig) -> None:
    with index.open(index[0]) as file:
        pixels, _ = load_crop(
            file, config.data, CropSize(config.data.resolution, config.data.resolution), (0.5, 0.5), flip=False
        )
    assert scale_pixels(torch.from_numpy(pixels)).shape == (3, config.data.resolution, config.data.resolution)


def encode(args: SimpleNamespace, config: RunConfig, model: DiffusionModel, index: Index) -> Encodings:
    """What the stage before the first step makes."""
    world = init_process_group(1)
    run = RunDir(Path(args.folder, "run"))
    attempt = run.open_attempt()
    plan = AttemptPlan(1, 1, args.batch, 1, 10**9, args.model, "bench", len(index), index.digest)
    context = RankContext(run, attempt, plan, config, world, Progress(), StopSignal())
    encodings = encode_dataset(context, model, index)
    assert encodings is not None
    return encodings


def measure_encoding(args: SimpleNamespace) -> dict[str, float]:
    """Seconds and CPU seconds of filling the cache; and once more, when all is there."""
    config, index = make_config(args), keep_index_of(args).index
    model = load_model(config, Path(args.model), torch.device("cpu"))
    began, spent = time.perf_counter(), time.process_time()
    encode(args, config, model, index)
    return {"seconds": time.perf_counter() - began, "CPU": time.process_time() - spent, "images": len(index)}


def feed(args: SimpleNamespace, turns: Turns) -> None:
    """Micro-batches of consecutive positions, until nobody asks for more; without the noise of each position, which the
    other side does not have, either."""
    train.data.stream.draw_normals = lambda *_: np.zeros(0, np.float32)
    config, index = make_config(args), keep_index_of(args).index
    model = load_model(config, Path(args.model), torch.device("cpu"))
    encodings = encode(args, config, model, index) if args.encoded else NOTHING_KEPT
    stream = Stream(
        config,
        index,
        model,
        lambda drawn: int(drawn * 1000),
        encodings,
    )
    plan = BatchPlan(Shape(1, 1), args.batch, 1)
    for batch in micro_batches(stream, plan, 0, itertools.count(1), pin_memory=False):
        turns.before_step()
        assert not batch["noise"].numel()
        if not args.encoded:
            scale_pixels(batch["pixels"])


TASKS = {"open": open_once, "encode": measure_encoding}

if __name__ == "__main__":
    gc.freeze()  # what was imported is nobody's to look through while the clock runs
    options = SimpleNamespace(**json.loads(sys.argv[1]))
    torch.set_num_threads(1)
    if options.task == "feed":
        feed(options, Turns())
    else:
        print(json.dumps(TASKS[options.task](options)))
