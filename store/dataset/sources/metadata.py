"""`metadata.jsonl` and `metadata.csv`, as Hugging Face's imagefolder has them: which images there are, and captions."""

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from configs.errors import UserError
from store.dataset.bad_samples import describe_unreadable
from store.dataset.sources.captions import CAPTION_KEYS

METADATA_NAMES = ("metadata.jsonl", "metadata.csv")  # the first that is there is read


@dataclass(frozen=True)
class ImageRecord:
    """One line that names an image."""

    place: str  # file:line
    image: str  # relative to the file's folder
    captions: tuple[str, ...]


def read_metadata(file: Path, column: str | None) -> Iterator[ImageRecord]:
    """The records of `file` in their order; `column` holds the captions, or text or else caption where it is None.

    Raises UserError where a line is none: nobody knows which image it would be.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{file}: is not UTF-8; save it as UTF-8") from None
    except OSError as error:
        raise UserError(describe_unreadable(file, error)) from None
    lines = _read_csv(file, text) if file.suffix == ".csv" else _read_json_lines(file, text)
    for place, record in lines:
        yield _parse_record(place, record, column)


def _read_json_lines(file: Path, text: str) -> Iterator[tuple[str, object]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        place = f"{file}:{number}"
        try:
            yield place, json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{place}: is no JSON object ({_shorten(error)}); {_example('text')}") from None


def _read_csv(file: Path, text: str) -> Iterator[tuple[str, object]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        for record in reader:
            yield f"{file}:{reader.line_num}", {key: value for key, value in record.items() if value is not None}
    except csv.Error as error:
        raise UserError(f"{file}:{reader.line_num + 1}: is no line of CSV ({error}); quote texts with commas") from None


def _parse_record(place: str, record: object, column: str | None) -> ImageRecord:
    columns = (column,) if column is not None else CAPTION_KEYS
    if not isinstance(record, dict):
        raise UserError(f"{place}: is no JSON object; {_example(columns[0])}")
    if "file_name" not in record:
        raise UserError(f"{place}: has no file_name; {_example(columns[0])}")
    found = next((name for name in columns if name in record), None)
    if found is None:
        raise UserError(f"{place}: has no {' or '.join(columns)}; {_example(columns[0])}")
    image, captions = record["file_name"], record[found]
    captions = [captions] if isinstance(captions, str) else captions
    if not isinstance(image, str):
        raise UserError(f"{place}: file_name is {_shorten(image)} and must be text")
    if not isinstance(captions, list) or not captions or not all(isinstance(caption, str) for caption in captions):
        wanted = "must be text, or a list of texts of which each pass takes one"
        raise UserError(f"{place}: {found} is {_shorten(captions)} and {wanted}")
    return ImageRecord(place, image, tuple(captions))


def _example(column: str) -> str:
    return f'each line is {{"file_name": "a.png", "{column}": "its caption"}}'


def _shorten(value: object) -> str:
    text = repr(value) if not isinstance(value, Exception) else str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
