"""Options that change where things lie or what is computed twice change nothing of what is learnt."""

from pathlib import Path

import numpy as np
import pytest

from store.run.run_dir import RunDir
from tests.engines import SETTINGS
from tests.ranks import start_ranks
from tests.runs import new_run, next_attempt, values

PROGRAM = Path(__file__).with_name("faulty_attempt.py")


def trained(folder: Path, pipeline: Path, images: Path, **changes) -> RunDir:
    run = new_run(folder, pipeline, images, steps=3, micro_batch=3, **changes)
    ranks = start_ranks(2, PROGRAM, run.path, next_attempt(run, 2).number, "{}")
    assert ranks.wait() == [0, 0], ranks.said()[-3000:]
    return run


@pytest.fixture(scope="module", params=["zero2", "reshard"])
def engine(request) -> dict:
    return SETTINGS[request.param]


@pytest.fixture(scope="module")
def plain(tmp_path_factory, pipeline_folder, image_folder, engine) -> dict[tuple[str, str], np.ndarray]:
    return values(trained(tmp_path_factory.mktemp("options") / "plain", pipeline_folder, image_folder, **engine))


@pytest.mark.parametrize("option", ["offload", "gradient_checkpointing"])
def test_the_same_weights_come_of_it(tmp_path, pipeline_folder, image_folder, engine, plain, option):
    found = values(trained(tmp_path / option, pipeline_folder, image_folder, **engine, **{option: True}))
    assert found.keys() == plain.keys()
    assert [key for key in plain if not np.array_equal(found[key], plain[key])] == []
