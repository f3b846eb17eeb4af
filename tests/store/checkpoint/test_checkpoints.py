"""What others leave in a run's folder of checkpoints stops no attempt."""

from pathlib import Path

from store.checkpoint.checkpoints import list_checkpoints, list_quarantined, remove_partial
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
