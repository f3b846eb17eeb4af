"""`lockstep cache`: a run's data is encoded and no more; and what `plan`, `status` and `submit` make of that."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from configs.errors import UserError
from configs.known_models import SD1
from configs.schema import RunConfig
from configs.solve.hardware import Hardware
from launcher.data.encodings import describe_encodings, plan_encodings
from store.encodings.access import check_room
from store.encodings.family import Family, FamilyFolder, find_families
from store.encodings.rate import EncodingRate
from store.encodings.shards import measure_shards, write_shard
from store.run.submission import Submission
from tests.launcher.desk import Desk, running
from tests.launcher.runs import LOCAL, end_of, make_run
from tests.shell import lockstep, started

CONFIG = """\
model: ../model
data: {images: ./images, resolution: 32, flip: true, workers: 1, cache: all}
batch: 4
steps: 2
engine: fsdp2
"""


def test_a_run_is_encoded_alone_and_then_trained_without_encoding(model: Path) -> None:
    file, run = make_run(model, "encoded", CONFIG)
    done = lockstep("cache", file, *LOCAL, 2)
    assert (done.returncode, done.stderr) == (0, ""), done
    assert "encoding images: 20 of 20 (100%)" in done.stdout
    assert "encoding captions: 20 of 20 (100%)" in done.stdout
    assert end_of(run, 1)["reason"] == "encoded"
    [row] = json.loads(lockstep("status", run.path, "--json").stdout)
    assert (row["state"], row["step"]) == ("encoded", 0)
    assert "runs" not in lockstep("status", file.parent / "runs").stdout.replace(str(file.parent), "")

    plan = " ".join(lockstep("plan", file).stdout.split())
    assert "cache 40 moments, 81.9 KiB and 21 states, 405.2 KiB, encoded already" in plan

    done = lockstep("submit", file, "--local")
    assert (done.returncode, done.stderr) == (0, ""), done
    assert "encoding" not in done.stdout
    assert end_of(run, 2)["reason"] == "finished"

    pruned = lockstep("cache", file, "--prune").stdout.splitlines()
    assert len(pruned) == 2
    assert all("removed 0 maps and 0 shards, 0 B" in line for line in pruned)


def test_plan_does_not_guess_how_long_it_takes(tmp_path: Path) -> None:
    data = {"images": "-", "cache_folder": str(tmp_path), "cache": "all", "flip": True, "caption_tokens": 150}
    config = RunConfig(name="a", model="mine", data=data, precision="bf16")
    hardware = Hardware(gpus=True)
    plan = plan_encodings(config, SD1, hardware, 6_000_000, 9_000_000, None)
    assert plan is not None
    assert plan.count_minutes(8) is None
    assert "12,000,000 moments, 733.0 GiB and 9,000,001 states, 1.9 TiB, to encode; the time is not known" in (
        describe_encodings(plan, 8)
    )
    rates = [(8.0, "NVIDIA H100", "mine"), (500.0, "NVIDIA H100", "mine"), (9.0, "NVIDIA H100", "other")]
    for number, (speed, device, model) in enumerate([*rates, (2.0, "cpu", "mine")]):
        kind = Family("moments", {"weights": str(number)}, {"model": model})
        family = FamilyFolder.for_family(tmp_path, kind)
        family.make(kind)
        EncodingRate(speed, device).write(family.rate_path)
        os.utime(family.rate_path, (number, number))
    plan = plan_encodings(config, SD1, hardware, 6_000_000, 9_000_000, None)
    assert plan is not None
    assert plan.count_minutes(8) == pytest.approx(12_000_000 / 500 / 8 / 60)
    assert "about 50 min at 500 per second and rank, as measured on NVIDIA H100" in describe_encodings(plan, 8)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("data.cache=off",), "data.cache is off, so there is nothing to encode; write data.cache: latents or all"),
        (("data.crop=random", "data.cache=all"), "data.cache: all needs crops that can be listed"),
        (("data.cache=all", "data.tag_shuffle=true"), "needs captions that can be listed, and tag_shuffle makes"),
    ],
)
def test_what_cannot_be_encoded_is_refused(desk: Desk, words: tuple[str, ...], sentence: str) -> None:
    code, text = desk.lockstep("cache", desk.file, *words)
    assert code == 2
    assert sentence in text
    assert not (desk.folder / "runs").exists()


def test_a_folder_without_encodings_is_not_pruned(desk: Desk) -> None:
    code, text = desk.lockstep("cache", desk.folder, "--prune")
    assert code == 2
    assert "holds no encodings; name a config, or its data.cache_folder" in text


def test_a_cache_that_cannot_be_written_is_refused_before_anything_is_queued(model: Path) -> None:
    file, run = make_run(model, "read-only", CONFIG)
    folder = file.parent / "cache"
    folder.mkdir()
    (folder / "encodings").mkdir(mode=0o555)
    done = lockstep("submit", file, "--local", f"data.cache_folder={folder}", ordinary=True)
    assert done.returncode == 2
    assert f"{folder / 'encodings'}: cannot be written by" in done.stderr
    assert "name another folder with data.cache_folder, or write data.cache: off" in done.stderr
    assert not run.path.exists()


def test_a_job_that_only_encodes_is_not_taken_for_one_that_trains(desk: Desk) -> None:
    run = desk.submitted("7")
    submission = Submission.read(run.submission_path)
    replace(submission, only_encode=True).write(run.submission_path)
    desk.knows(running("7"))
    code, text = desk.lockstep("submit", desk.file)
    assert code == 2
    assert "is job 7, which only encodes its data" in text
    assert "submit it when that is done, or cancel it first" in text
    code, text = desk.lockstep("cache", desk.file)
    assert (code, "is job 7 already" in text) == (0, True), text
    assert desk.queued() == []


def test_room_is_asked_for_what_is_not_there_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1 << 40, 0, 48 << 20))
    check_room(tmp_path, 48 << 20)
    with pytest.raises(UserError, match=r"0\.1 GB of encodings are to be written, and 0\.1 GB are free; free some"):
        check_room(tmp_path, 96 << 20)
    kind = Family("moments", {"weights": "a"}, {"model": "mine"})
    family = FamilyFolder.for_family(tmp_path, kind)
    family.make(kind)
    write_shard(family.shards_path, "F32", (1,), [(bytes(16), bytes(4))])
    assert [found.path for found in find_families(tmp_path, "mine")] == [family.path]
    assert find_families(tmp_path, "another") == []
    assert measure_shards(family) > 4


@pytest.mark.faults
def test_two_runs_encode_into_one_cache_at_once(model: Path, tmp_path: Path) -> None:
    files = [make_run(model, name, CONFIG)[0] for name in ("first", "second")]
    shutil.rmtree(files[1].parent / "images")
    shutil.copytree(files[0].parent / "images", files[1].parent / "images")  # other times: another version, equal keys
    folder = f"data.cache_folder={tmp_path / 'cache'}"
    with (
        started(tmp_path / "a", "cache", files[0], *LOCAL, 2, folder) as first,
        started(tmp_path / "b", "cache", files[1], *LOCAL, 2, folder) as second,
    ):
        assert (first.wait(240), second.wait(240)) == (0, 0), (tmp_path / "a").read_text()
    for file in files:
        done = lockstep("cache", file, *LOCAL, 2, folder)
        assert (done.returncode, "anew" in done.stdout, "encoding" in done.stdout) == (0, False, False), done.stdout
