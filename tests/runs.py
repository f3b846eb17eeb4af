"""Run folders for tests, made without the launcher: a config, a dataset, and attempts on any shape."""

import json
from pathlib import Path

import numpy as np

from configs.reading.load import dump_config, load_config
from configs.schema import RunConfig
from configs.solve.batch import Shape, solve_batch
from store.checkpoint import checkpoints
from store.dataset.identity import identify_dataset
from store.dataset.index import Index, write_index
from store.files import write_atomic
from store.run.run_dir import Attempt, RunDir
from store.run.submission import Submission, open_attempt
from tests.indexes import index_images


def square_data(images: Path) -> dict[str, object]:
    """The config's data: random crops of small images, half of them mirrored."""
    return {"images": str(images), "resolution": 32, "crop": "random", "flip": True, "workers": 0}


def new_run(folder: Path, model: Path, images: Path | None = None, **changes) -> RunDir:
    """A run of 12-sample batches over small images; without `images`, `changes` say what its data are."""
    settings = {
        "name": folder.name,
        "model": str(model),
        "data": images and square_data(images),
        "batch": 12,
        "steps": 12,
        "lr": 1e-4,
        "ema": True,
        "report_every_steps": 1,
        "runs": str(folder.parent),
    }
    run, config = RunDir(folder), RunConfig(**(settings | changes))
    write_atomic(run.config_path, dump_config(config))
    index = index_images(config.data, config.cache_folder)
    write_index(run.dataset_path, index, index.roots)
    return run


def next_attempt(run: RunDir, ranks: int, *, only_encode: bool = False, **changes) -> Attempt:
    """Open the next attempt on `ranks` ranks, with `changes` to the config that a resume may make."""
    config = load_config(run.config_path).model_copy(update=changes)
    write_atomic(run.config_path, dump_config(config))
    index = Index.open_file(run.dataset_path)
    digest = identify_dataset(config.data, index)
    submission = Submission(
        config.model, len(index), digest, content="", only_encode=only_encode, source_sizes=index.source_sizes
    )
    submission.write(run.submission_path)
    return open_attempt(run, config, solve_batch(config, Shape(1, ranks)))


def values(run: RunDir) -> dict[tuple[str, str], np.ndarray]:
    """All that the newest checkpoint holds: (kind, parameter) → its elements."""
    reader = checkpoints.list_checkpoints(run)[-1].open_reader()
    return {(k, n): reader.read(k, n, 0, size) for k in reader.kinds() for n, size in reader.sizes(k).items()}


def read_losses(run: RunDir) -> list[float]:
    """Of every step that was reported."""
    return [json.loads(line)["loss/train"] for line in run.metrics_path.read_text().splitlines()]
