"""What others leave in a run's folder of checkpoints stops no attempt, and what is not whole is found."""

from pathlib import Path

import numpy as np
import pytest

from store.checkpoint.checkpoints import (
    Checkpoint,
    committed_path,
    list_checkpoints,
    list_quarantined,
    remove_partial,
)
from store.checkpoint.fragment_file import StoredFragment, write_fragments
from store.checkpoint.manifest import MANIFEST_NAME, Identity, Manifest, digest_layout
from store.run.run_dir import RunDir


def make_folders(run: RunDir, *names: str) -> None:
    for name in names:
        (run.checkpoints_path / name / "inside").mkdir(parents=True)


def test_what_is_half_written_goes_whatever_it_is(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    make_folders(run, "tmp-step-00000004-a0001", "step-00000002-a0001")
    (run.checkpoints_path / "tmp-x").touch()
    (run.checkpoints_path / "tmp-link").symlink_to(run.checkpoints_path / "step-00000002-a0001")
    remove_partial(run)
    assert [path.name for path in run.checkpoints_path.iterdir()] == ["step-00000002-a0001"]
    assert (run.checkpoints_path / "step-00000002-a0001" / "inside").is_dir(), "a link is not followed"


def test_quarantine_takes_the_place_of_no_other(tmp_path: Path) -> None:
    """A copy of it lies there already, from the first time it was mended."""
    run = RunDir(tmp_path)
    make_folders(run, "step-00000004-a0001", "quarantined-step-00000004-a0001")
    [checkpoint] = list_checkpoints(run)
    kept = checkpoint.quarantine()
    assert kept.is_dir()
    assert list_checkpoints(run) == []
    assert len(list_quarantined(run)) == 2


def save(run: RunDir, left_out: tuple[str, ...] = ()) -> Checkpoint:
    """A checkpoint of two parameters, one of which has a state of another size, without the fragments `left_out`."""
    weights, rows = {"kernel": 12, "bias": 3}, {"kernel": 4}
    identity = Identity(run.path.name, 1, 1, "nonce", digest_layout(weights))
    fragments = [StoredFragment("weights", "kernel", 0, 7), StoredFragment("weights", "kernel", 7, 5)]
    fragments += [StoredFragment("weights", "bias", 0, 3), StoredFragment("row_var", "kernel", 0, 4)]
    kept = [fragment for fragment in fragments if fragment.key not in left_out]
    path = committed_path(run, 1, 1)
    path.mkdir(parents=True)
    values = [np.ones(fragment.length, np.float32) for fragment in kept]
    file = write_fragments(path / "fragments-00000.safetensors", kept, values, identity)
    manifest = Manifest(
        identity=identity,
        world_size=1,
        zero=0,
        kinds=("weights", "row_var", "variance"),
        optimizer_step=1,
        skipped_steps=0,
        loss_scaler=None,
        files=(file,),
        layouts={"row_var": digest_layout(rows), "variance": digest_layout({})},
    )
    (path / MANIFEST_NAME).write_text(manifest.to_text())
    return Checkpoint(path, 1, 1)


def test_a_state_with_a_size_of_its_own_is_known_to_be_whole(tmp_path: Path) -> None:
    checkpoint = save(RunDir(tmp_path / "run"))
    assert checkpoint.verify() == []
    reader = checkpoint.open_reader()
    assert reader.sizes("row_var") == {"kernel": 4}
    assert reader.sizes("variance") == {}, "no parameter has one, and that is whole"


@pytest.mark.parametrize(
    ("left_out", "problem"),
    [("row_var:kernel:0", "row_var is incomplete"), ("weights:kernel:7", "weights is incomplete")],
)
def test_what_is_missing_of_a_state_is_found(tmp_path: Path, left_out: str, problem: str) -> None:
    [found] = save(RunDir(tmp_path / "run"), (left_out,)).verify()
    assert found.endswith(problem)
