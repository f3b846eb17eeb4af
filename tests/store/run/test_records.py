"""The records of a run directory: what any version of one schema wrote is read, all else is refused by its name."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from configs.errors import LockstepError
from configs.solve.hardware import Hardware
from launcher.run_lock import LockHolder
from slurm.job.rank_entry import Rendezvous
from slurm.job.record import JobRecord
from slurm.site import Container, Site
from store.run.attempt_plan import AttemptPlan
from store.run.end import End
from store.run.records import (
    Allocation,
    FailureReport,
    HeartbeatRecord,
    Record,
    ResumePoint,
    SavedCheckpoint,
    StuckRank,
    read_failures,
    read_heartbeat,
    read_heartbeats,
)
from store.run.run_dir import Attempt
from store.run.submission import Submission

RECORDS = [
    AttemptPlan(2, 4, 8, 4, 100, "/model", "5eed", 1000, "d1ge57", zero=1),
    ResumePoint(40, "step-00000040-a0001", "5eed"),
    SavedCheckpoint("step-00000040-a0001"),
    End("notice", 40, "step-00000040-a0001", "SIGUSR2"),
    Submission("/model", 1000, "d1ge57", "c0n7en7", Hardware(True, 79.6, "9.0", 500.0, 8)),
    Allocation("7", ["n1", "n2"], 1.5, "first attempt", {"n3": "2 failures"}, 99.5, "n1", "/run/slurm/7.out", 10),
    HeartbeatRecord(3, "n1", 77, 1.5, 40, "loading", 1.25, 601.25),
    FailureReport(3, "n1", 77, 1.5, 12, "ValueError", "a bug — ü", False, "Traceback …", 1),
    FailureReport(
        3, "n1", 77, 1.5, 12, "Stuck", "rank 2 …", False, "Traceback …", 1, StuckRank(2, "n2", answers=False)
    ),
    JobRecord("7_3", Site(max_time="1-00:00:00", container=Container(image="/i.sif", mounts=["/a"])), 2, 1.5),
    LockHolder("n1", 77, 1.5),
    Rendezvous("n1", 15_000),
]
EACH = pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)

# What was written before records had a number, with the names of that time.
BEFORE_NUMBERS = [
    (
        '{"nodes": 1, "gpus_per_node": 2, "micro_batch": 1, "gradient_accumulation_steps": 4, "total_steps": 9,'
        ' "model_folder": "/m", "nonce": "n", "dataset_size": 5, "dataset_digest": "d"}',
        AttemptPlan(1, 2, 1, 4, 9, "/m", "n", 5, "d"),
    ),
    ('{"step": 0, "checkpoint": null, "nonce": "n"}', ResumePoint(0, None, "n")),
    ('{"checkpoint": "step-00000003-a0001"}', SavedCheckpoint("step-00000003-a0001")),
    ('{"reason": "finished", "step": 9, "checkpoint": null, "notice": null}', End("finished", 9, None)),
    ('{"model_folder": "/m", "dataset_size": 5, "dataset_digest": "d", "content": ""}', Submission("/m", 5, "d", "")),
    (
        '{"job": "7", "nodes": ["n1"], "left_out": {"n2": "why"}, "time": 1.5, "because": "first attempt",'
        ' "batch_host": "n1", "output": {"path": "/7.out", "size": 3}, "time_is_over": 9.5}',
        Allocation("7", ["n1"], 1.5, "first attempt", {"n2": "why"}, 9.5, "n1", "/7.out", 3),
    ),
    (
        '{"job": "7", "nodes": ["n1"], "left_out": {}, "time": 1.5, "because": "", "batch_host": "n1", "output": {},'
        ' "time_is_over": null}',
        Allocation("7", ["n1"], 1.5, batch_host="n1"),
    ),
    (
        '{"time": 1.5, "rank": 3, "step": 4, "doing": "training", "since": 1.25, "host": "n1", "pid": 77}',
        HeartbeatRecord(3, "n1", 77, 1.5, 4, "training", 1.25),
    ),
    (
        '{"time": 1.5, "rank": 3, "host": "n1", "pid": 77, "log_size": 0, "error": "E", "message": "m",'
        ' "peer_lost": true, "traceback": null, "exit_code": 2}',
        FailureReport(3, "n1", 77, 1.5, 0, "E", "m", True, None, 2),
    ),
    (
        json.dumps({"id": None, "after_attempt": 2, "submitted": 1.5, "site": Site().model_dump(mode="json")}),
        JobRecord(None, Site(), 2, 1.5),
    ),
    ('{"host": "n1", "pid": 77, "time": 1.5}', LockHolder("n1", 77, 1.5)),
]


def write(path: Path, record: Record, **changes: Any) -> Path:
    path.write_text(json.dumps(json.loads(record.to_text()) | changes))
    return path


@EACH
def test_what_is_written_is_read_and_has_its_number(tmp_path: Path, record: Record) -> None:
    record.write(tmp_path / "record.json")
    assert type(record).read(tmp_path / "record.json") == record
    assert json.loads((tmp_path / "record.json").read_text())["schema"] == 1


@pytest.mark.parametrize(("text", "record"), BEFORE_NUMBERS, ids=lambda value: type(value).__name__)
def test_a_file_without_a_number_is_read(tmp_path: Path, text: str, record: Record) -> None:
    (tmp_path / "record.json").write_text(text)
    assert type(record).read(tmp_path / "record.json") == record


@EACH
def test_fields_that_are_not_known_are_ignored(tmp_path: Path, record: Record) -> None:
    """Another version of the same schema wrote them."""
    assert type(record).read(write(tmp_path / "record.json", record, what_next={"a": [1]})) == record


def test_a_site_with_a_key_that_is_not_known_is_read(tmp_path: Path) -> None:
    record = JobRecord("7", Site(partition="gpu"), 0, 1.5)
    site = {**Site(partition="gpu").model_dump(mode="json"), "what_next": 1}
    assert JobRecord.read(write(tmp_path / "job.json", record, site=site)) == record


@EACH
def test_a_newer_number_is_refused(tmp_path: Path, record: Record) -> None:
    """Before anything else is looked at: its fields may be others."""
    path = write(tmp_path / "record.json", record, schema=2)
    with pytest.raises(LockstepError) as refused:
        type(record).read(path)
    sentence = f"{path}: a newer Lockstep wrote it (schema 2, and this one reads up to 1); update Lockstep"
    assert str(refused.value) == sentence
    path.write_text('{"schema": 3}')
    with pytest.raises(LockstepError, match="schema 3"):
        type(record).read(path)


@EACH
@pytest.mark.parametrize("damage", ["empty", "half", "no object", "not UTF-8", "a field is missing", "a wrong number"])
def test_a_damaged_file_is_named(tmp_path: Path, record: Record, damage: str) -> None:
    path, text = tmp_path / "record.json", record.to_text()
    fields = json.loads(text)
    required = list(fields)[1]
    path.write_bytes(
        {
            "empty": b"",
            "half": text[: len(text) // 2].encode(),
            "no object": json.dumps([fields]).encode(),
            "not UTF-8": text.encode("utf-16"),
            "a field is missing": json.dumps({key: fields[key] for key in fields if key != required}).encode(),
            "a wrong number": json.dumps(fields | {"schema": "1"}).encode(),
        }[damage]
    )
    with pytest.raises(LockstepError) as refused:
        type(record).read(path)
    assert str(refused.value).startswith(f"{path}: is damaged (")
    assert "\n" not in str(refused.value)


@EACH
def test_a_value_of_another_type_is_damage(tmp_path: Path, record: Record) -> None:
    """Every field in turn; no text is taken for a number, and no NaN for a time."""
    fields = json.loads(record.to_text())
    for key in fields:
        for wrong in ({"no": "such"}, 7 if isinstance(fields[key], str) else "7", float("nan")):
            if key in ("excluded_nodes", "site", "hardware") and isinstance(wrong, dict):
                continue  # any names with text are right there, and keys that are not known
            with pytest.raises(LockstepError, match=f"is damaged \\({key}"):
                type(record).read(write(tmp_path / "record.json", record, **{key: wrong}))


def test_a_file_that_is_not_there_or_cannot_be_read(tmp_path: Path) -> None:
    assert End.read_if_written(tmp_path / "end.json") is None
    with pytest.raises(LockstepError, match=r"end.json: is missing"):
        End.read(tmp_path / "end.json")
    with pytest.raises(LockstepError, match=rf"{tmp_path}: cannot be read \(Is a directory\)"):
        End.read(tmp_path)


@pytest.mark.parametrize(("durable", "syncs"), [(True, 2), (False, 0)])
def test_only_what_must_outlive_a_power_loss_is_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durable: bool, syncs: int
) -> None:
    """The file and its folder."""
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    ResumePoint(0, None, "n").write(tmp_path / "resume.json", durable=durable)
    assert (len(synced), ResumePoint.read(tmp_path / "resume.json").nonce) == (syncs, "n")
    assert [path.name for path in tmp_path.iterdir()] == ["resume.json"]


def test_signs_of_life_and_failures_of_all_ranks(tmp_path: Path) -> None:
    attempt = Attempt(tmp_path / "0001")
    assert (read_heartbeats(attempt), read_failures(attempt)) == ({}, [])
    for rank in (11, 2):
        replace(RECORDS[6], rank=rank).write(attempt.heartbeat_path(rank))
        replace(RECORDS[7], rank=rank, time=float(rank)).write(attempt.failure_path(rank))
    assert list(read_heartbeats(attempt)) == [2, 11]
    assert [report.rank for report in read_failures(attempt)] == [2, 11]
    for path in (attempt.heartbeat_path(2), attempt.failure_path(2)):
        path.write_text("{")
    with pytest.raises(LockstepError, match=rf"{attempt.heartbeat_path(2)}: is damaged"):
        read_heartbeats(attempt)
    with pytest.raises(LockstepError, match=rf"{attempt.failure_path(2)}: is damaged"):
        read_failures(attempt)


def test_an_empty_heartbeat_is_no_sign_of_life(tmp_path: Path) -> None:
    """As a node that lost its power leaves it, for nobody waits until it is on the disk."""
    attempt = Attempt(tmp_path / "0001")
    RECORDS[6].write(attempt.heartbeat_path(3))
    attempt.heartbeat_path(4).touch()
    assert read_heartbeat(attempt.heartbeat_path(4)) is None
    assert list(read_heartbeats(attempt)) == [3]


@pytest.mark.parametrize("content", [b"", bytes(300)], ids=["empty", "zeros"])
def test_what_a_power_loss_left_of_a_heartbeat_is_none(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "rank-0000.json"
    path.write_bytes(content)
    assert read_heartbeat(path) is None


def test_only_what_watches_may_be_removed(tmp_path: Path) -> None:
    """Without `resume.json` attempts that were overtaken count again; without `saved.json` a run may start anew."""
    path = tmp_path / "record.json"
    path.write_text("{")
    cures = {}
    for record in (ResumePoint, SavedCheckpoint, AttemptPlan, End, HeartbeatRecord, FailureReport):
        with pytest.raises(LockstepError) as refused:
            record.read(path)
        cures[record] = "remove it" in str(refused.value)
    assert [record for record, removes in cures.items() if removes] == [HeartbeatRecord, FailureReport]
