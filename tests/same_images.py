"""The images of one folder once more, as parquet and as tar shards."""

import io
import json
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

HUB_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def read_records(images: Path) -> list[tuple[str, bytes, str]]:
    """Name, bytes and caption of each image that the folder's metadata.jsonl names."""
    records = [json.loads(line) for line in (images / "metadata.jsonl").read_text().splitlines()]
    return [(record["file_name"], (images / record["file_name"]).read_bytes(), record["text"]) for record in records]


def write_as_parquet(images: Path, path: Path, rows_per_group: int = 3) -> Path:
    """As the hub has data sets: image: {bytes, path}, and text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    names, contents, captions = zip(*read_records(images), strict=True)
    column = [{"bytes": content, "path": name} for name, content in zip(names, contents, strict=True)]
    table = pa.table({"image": pa.array(column, HUB_IMAGE), "text": list(captions)})
    pq.write_table(table, path, row_group_size=rows_per_group)
    return path


def write_as_tars(images: Path, folder: Path, per_shard: int = 7) -> Path:
    """As webdataset has them: each image with its .txt."""
    folder.mkdir(parents=True, exist_ok=True)
    records = read_records(images)
    for shard in range(0, len(records), per_shard):
        with tarfile.open(folder / f"{shard:06d}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            for name, content, caption in records[shard : shard + per_shard]:
                _add_member(tar, name, content)
                _add_member(tar, f"{Path(name).stem}.txt", caption.encode())
    return folder


def _add_member(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))
