"""Damaged checkpoints: detected before a tensor is applied, set aside with the file named, the one before is used."""

import json
import re
import shutil
from pathlib import Path

import pytest

from configs.errors import LockstepError
from store.checkpoint import checkpoints
from store.run.records import ResumePoint
from store.run.run_dir import RunDir
from tests.ranks import start_ranks
from tests.runs import new_run, next_attempt

PROGRAM = Path(__file__).parents[1] / "faulty_attempt.py"


@pytest.fixture(scope="module")
def saved(tmp_path_factory, pipeline_folder, image_folder) -> tuple[RunDir, RunDir]:
    """Two runs with checkpoints of steps 2, 4 and 6, by two ranks each."""
    folder = tmp_path_factory.mktemp("damage")
    made = []
    for name, seed in (("run", 0), ("other", 1)):
        checkpoint = {"every_steps": 2, "keep": 5, "mode": "sync"}
        settings = {"steps": 6, "micro_batch": 3, "zero": 1, "checkpoint": checkpoint, "seed": seed}
        run = new_run(folder / name, pipeline_folder, image_folder, **settings)
        attempt = next_attempt(run, 2)
        ranks = start_ranks(2, PROGRAM, run.path, attempt.number, "{}")
        assert ranks.wait() == [0, 0], ranks.said()[-3000:]
        made.append(run)
    return made[0], made[1]


def resumed(run: RunDir, steps: int = 7) -> tuple[list[int], str, ResumePoint | None]:
    """Start the next attempt; its exit codes, what it said and where it went on from."""
    attempt = next_attempt(run, 2, steps=steps)
    ranks = start_ranks(2, PROGRAM, run.path, attempt.number, "{}")
    codes = ranks.wait()
    return codes, ranks.said(), ResumePoint.read_if_written(attempt.resume_path)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip_one_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGE = {"truncate": truncate, "flip": flip_one_bit, "delete": Path.unlink}


@pytest.mark.parametrize("name", ["fragments-00000.safetensors", "fragments-00001.safetensors", "manifest.json"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_every_damage_to_every_file_is_found(saved, tmp_path, name, damage):
    run = RunDir(shutil.copytree(saved[0].path, tmp_path / "run"))
    newest = checkpoints.list_checkpoints(run)[-1]
    DAMAGE[damage](newest.path / name)
    assert any(name in problem for problem in newest.verify())


@pytest.mark.parametrize("foreign", ["step", "run"])
def test_a_foreign_shard_is_found(saved, tmp_path, foreign):
    run = RunDir(shutil.copytree(saved[0].path, tmp_path / "run"))
    newest = checkpoints.list_checkpoints(run)[-1]
    source = checkpoints.list_checkpoints(run)[-2] if foreign == "step" else checkpoints.list_checkpoints(saved[1])[-1]
    shutil.copy(source.path / "fragments-00000.safetensors", newest.path)
    assert re.search(r"fragments-00000.safetensors: (does not match its digest|holds \d+ bytes)", newest.verify()[0])


def test_a_stranger_beside_the_shards_is_found(saved, tmp_path):
    run = RunDir(shutil.copytree(saved[0].path, tmp_path / "run"))
    newest = checkpoints.list_checkpoints(run)[-1]
    shutil.copy(newest.path / "fragments-00000.safetensors", newest.path / "fragments-00002.safetensors")
    assert newest.verify() == [f"{newest.path / 'fragments-00002.safetensors'}: is not in the manifest"]


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_in_the_other_rank_s_file_is_quarantined_by_all(saved, tmp_path, damage):
    run = RunDir(shutil.copytree(saved[0].path, tmp_path / "run"))
    path = checkpoints.list_checkpoints(run)[-1].path / "fragments-00001.safetensors"
    DAMAGE[damage](path)
    codes, said, record = resumed(run)
    assert codes == [0, 0], said[-3000:]
    assert record is not None
    assert record.step == 4
    assert f"{path}: " in said


def test_a_run_goes_on_from_the_last_good_one_and_keeps_the_bad(saved, tmp_path):
    run = RunDir(shutil.copytree(saved[0].path, tmp_path / "run"))
    newest, before = checkpoints.list_checkpoints(run)[-1], checkpoints.list_checkpoints(run)[-2]
    flip_one_bit(newest.path / "fragments-00000.safetensors")
    truncate(before.path / "manifest.json")
    codes, said, record = resumed(run)
    assert codes == [0, 0], said[-3000:]
    assert record is not None
    assert record.step == 2
    assert f"{newest.path / 'fragments-00000.safetensors'}: does not match its digest" in said
    assert f"{before.path / 'manifest.json'}" in said
    assert [path.name for path in checkpoints.list_quarantined(run)] == [
        "quarantined-step-00000004-a0001",
        "quarantined-step-00000006-a0001",
    ]
    assert checkpoints.list_checkpoints(run)[-1].step == 7


def test_a_checkpoint_of_another_run_under_this_name_is_not_taken(saved, tmp_path):
    run = RunDir(shutil.copytree(saved[0].path, tmp_path / "run"))
    shutil.rmtree(checkpoints.list_checkpoints(run)[-1].path)
    shutil.copytree(checkpoints.list_checkpoints(saved[1])[-1].path, run.checkpoints_path / "step-00000006-a0001")
    codes, said, record = resumed(run)
    assert codes == [0, 0], said[-3000:]
    assert record is not None
    assert record.step == 4
    assert "belongs to the run other" in said


def test_all_bad_is_an_error_and_no_step_is_taken(saved, tmp_path):
    run = RunDir(shutil.copytree(saved[0].path, tmp_path / "run"))
    for checkpoint in checkpoints.list_checkpoints(run):
        flip_one_bit(checkpoint.path / "fragments-00000.safetensors")
    for _ in range(2):  # and it stays an error: no second start begins again in silence
        codes, said, _ = resumed(run)
        assert codes == [1, 1]
        assert "3 checkpoints and none verifies, so no step is taken" in said
        assert "step 1/" not in said
    mended = next(path for path in checkpoints.list_quarantined(run) if "00000004" in path.name)
    flip_one_bit(mended / "fragments-00000.safetensors")
    mended.rename(mended.with_name(mended.name.removeprefix("quarantined-")))
    codes, said, record = resumed(run)
    assert codes == [0, 0], said[-3000:]
    assert record is not None
    assert record.step == 4, "the cure that was printed works"


@pytest.mark.parametrize("away", ["removed", "dangling link", "file"])
@pytest.mark.parametrize("record", ["saved", "end", "resume"])
def test_a_run_whose_checkpoints_are_away_does_not_start_again(saved, tmp_path, away, record):
    """Its folder was a link to a file system that is not mounted, say. Any record that there was one is enough."""
    run = RunDir(shutil.copytree(saved[0].path, tmp_path / "run"))
    first = run.attempt(1)
    if record == "resume":
        ResumePoint(4, "step-00000004-a0001", "x").write(first.resume_path)
    for path in {first.saved_path, first.end_path, first.resume_path} - {getattr(first, f"{record}_path")}:
        path.unlink(missing_ok=True)
    elsewhere = run.checkpoints_path.rename(tmp_path / "elsewhere")
    if away == "dangling link":
        run.checkpoints_path.symlink_to(tmp_path / "not mounted")
    elif away == "file":
        run.checkpoints_path.write_text("")
    for _ in range(2):
        codes, said, begun = resumed(run)
        assert codes == [1, 1]
        assert re.search(
            r"LockstepError: .*holds no checkpoint, and step-\d+-a0001 was saved there, so no step is taken", said
        )
        assert begun is None
        assert "step 1/" not in said

    run.checkpoints_path.unlink(missing_ok=True)
    run.checkpoints_path.symlink_to(elsewhere)
    codes, said, begun = resumed(run)
    assert codes == [0, 0], said[-3000:]
    assert begun is not None
    assert begun.step == 6, "nothing that came back is hidden"


def test_a_damaged_record_is_named(saved, tmp_path):
    run = RunDir(shutil.copytree(saved[0].path, tmp_path / "run"))
    for content in ("", "{}", "[]", '{"checkpoint'):
        run.attempt(1).saved_path.write_text(content)
        with pytest.raises(LockstepError, match=r"attempts/0001/saved.json: is damaged"):
            checkpoints.find_recorded_checkpoint(run)


def test_what_an_older_attempt_adds_later_is_not_seen(saved, tmp_path):
    """A cut-off node may commit after the next attempt began; readers ignore it."""
    run = RunDir(shutil.copytree(saved[0].path, tmp_path / "run"))
    newest = checkpoints.list_checkpoints(run)[-1]
    attempt = next_attempt(run, 1)
    ResumePoint(4, "step-00000004-a0001", "x").write(attempt.resume_path)
    assert newest.path.exists()
    assert [checkpoint.step for checkpoint in checkpoints.list_checkpoints(run)] == [2, 4]


def test_manifest_counts_and_identity(saved):
    newest = checkpoints.list_checkpoints(saved[0])[-1]
    manifest = newest.read_manifest()
    assert (manifest.identity.run, manifest.identity.step, manifest.optimizer_step) == ("run", 6, 6)
    assert manifest.kinds == ("weights", "exp_avg", "exp_avg_sq", "ema")
    assert json.loads((newest.path / "manifest.json").read_text())["schema"] == 1
