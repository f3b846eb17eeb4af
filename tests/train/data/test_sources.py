"""The same images as folder, parquet and tar shards are the same run."""

from pathlib import Path

import numpy as np

from store.dataset.index import Index
from store.run.run_dir import RunDir
from tests.ranks import start_ranks
from tests.runs import new_run, next_attempt, read_losses, values
from tests.same_images import write_as_parquet, write_as_tars
from tests.train.test_options import PROGRAM


def train(folder: Path, model: Path, images: Path, source: dict[str, str]) -> RunDir:
    data = {"sources": [source], "resolution": 32, "crop": "random", "flip": True, "workers": 0}
    run = new_run(folder, model, images, data=data, steps=2, micro_batch=6)
    ranks = start_ranks(1, PROGRAM, run.path, next_attempt(run, 1).number, "{}")
    assert ranks.wait() == [0], ranks.said()[-3000:]
    return run


def test_the_losses_are_the_same_to_the_bit(tmp_path: Path, pipeline_folder: Path, image_folder: Path) -> None:
    sources = {
        "images": image_folder,
        "parquet": write_as_parquet(image_folder, tmp_path / "data/train.parquet"),
        "tars": write_as_tars(image_folder, tmp_path / "shards"),
    }
    runs = [
        train(tmp_path / kind, pipeline_folder, image_folder, {kind: str(place)}) for kind, place in sources.items()
    ]
    folder, *others = runs
    index, weights = Index.open_file(folder.dataset_path), values(folder)
    for run in others:
        same = Index.open_file(run.dataset_path)
        for one, other in zip(index, same, strict=True):
            assert (one.width, one.height, one.captions) == (other.width, other.height, other.captions)
            assert index.open(one).read() == same.open(other).read()
        assert read_losses(run) == read_losses(folder)
        assert len(read_losses(run)) == 2
        others_weights = values(run)
        assert all(np.array_equal(weights[name], others_weights[name]) for name in weights)
