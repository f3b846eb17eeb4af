"""Sources that are wrong end plan and submit with exit code 2 and one message, and leave nothing behind."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.launcher.desk import Desk
from tests.same_images import write_as_parquet, write_as_tars


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    """With the images once more as tars and as parquet, in `tars` and `pq`."""
    desk = Desk(tmp_path, monkeypatch)
    records = [json.dumps({"file_name": f"{number}.png", "text": "a red circle"}) for number in range(8)]
    (tmp_path / "images/metadata.jsonl").write_text("\n".join(records))
    write_as_tars(tmp_path / "images", tmp_path / "tars", 8)
    write_as_parquet(tmp_path / "images", tmp_path / "pq/a.parquet")
    return desk


def list_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def refusal(desk: Desk, *sources: dict[str, object]) -> str:
    """The message of submit, which is that of plan."""
    before = list_files(desk.folder)
    words = ("data.images=null", f"data.sources={json.dumps(sources)}")
    exit_code, planned = desk.lockstep("plan", desk.file, *words)
    assert exit_code == 2, planned
    exit_code, submitted = desk.lockstep("submit", desk.file, *words)
    assert (exit_code, submitted) == (2, planned)
    assert list_files(desk.folder) == before
    assert desk.queued() == []
    return submitted


def test_sources_that_are_not_there(desk: Desk) -> None:
    for kind, suffix in (("parquet", ".parquet"), ("tars", ".tar")):
        place = desk.folder / "nowhere"
        assert refusal(desk, {kind: str(place)}) == (
            f"{place}: no such file or folder; {kind} names a {suffix} file, a folder of them, or a pattern"
        )


def test_parquet_without_images_or_captions(desk: Desk) -> None:
    place = desk.folder / "pq/a.parquet"
    assert "the captions' column image holds struct<" in refusal(desk, {"parquet": str(place), "caption": "image"})
    pq.write_table(pa.table({"text": ["a"]}), place)
    assert f"{place}: no column holds images' bytes (its columns: text: string)" in refusal(
        desk, {"parquet": str(place)}
    )


def test_tars_that_are_not_whole(desk: Desk) -> None:
    [place] = (desk.folder / "tars").iterdir()
    content = place.read_bytes()
    place.write_bytes(content[:1000])
    assert "it was damaged or cut off, fetch or write it again" in refusal(desk, {"tars": str(place)})
    place.write_bytes(gzip.compress(content))
    assert refusal(desk, {"tars": str(place.parent)}).endswith("unpack it with gunzip")


def test_a_source_that_adds_nothing(desk: Desk) -> None:
    [place] = (desk.folder / "tars").iterdir()
    place.write_bytes(bytes(1024))
    sources = json.dumps([{"images": str(desk.folder / "images")}, {"tars": str(place)}])
    for command in ("plan", "submit"):
        assert desk.lockstep(command, desk.file, "data.images=null", f"data.sources={sources}") == (
            2,
            f"{place}: holds no good sample; correct it, or remove it from data.sources",
        )


def test_a_cache_folder_that_cannot_be_written(desk: Desk) -> None:
    (desk.folder / "cache").write_text("a file is in the way")
    exit_code, said = desk.lockstep(
        "submit",
        desk.file,
        "data.images=null",
        f"data.sources=[{{parquet: {desk.folder}/pq}}]",
        f"data.cache_folder={desk.folder}/cache",
    )
    assert exit_code == 2
    assert (
        "the images of parquet files cannot be copied there (Not a directory); free some space, or name another" in said
    )
