"""What another value of a key changes, as the marks of the schema say it.

A resume refuses another value of a `run` key; a sweep trains again what differs in a `run` or a `result` key; a run's
own config leaves a `cost` key open that its user left open.
"""

from collections.abc import Collection, Iterator, Mapping
from typing import Literal

from pydantic.fields import FieldInfo

from configs.schema import RunConfig, Section, get_section

Mark = Literal["run", "result", "cost", "view"]


def get_mark(field: FieldInfo) -> object:
    """The mark of a key; None where it has none, as a section that is always there."""
    extra = field.json_schema_extra
    return extra.get("changes") if isinstance(extra, dict) else None


def select_values(config: RunConfig, marks: Collection[Mark], meanings: Mapping[str, object]) -> dict[str, object]:
    """What `config` holds under the keys with one of `marks`: dotted key → plain value.

    `meanings` take the place of values that can be spelled in several ways: a length in epochs, a folder's path. A
    section that may be null is also a key, which says whether it is there.
    """
    values = {key: value for key, mark, value in _list_values(type(config), config, "") if mark in marks}
    return values | {key: meaning for key, meaning in meanings.items() if key in values}


def _list_values(model: type[Section], section: Section | None, prefix: str) -> Iterator[tuple[str, object, object]]:
    """Key, mark and value; below a section that is null every value is null."""
    plain = section.model_dump(mode="json") if section is not None else {}
    for name, field in model.model_fields.items():
        key, mark, inner = f"{prefix}{name}", get_mark(field), get_section(field)
        if inner is None:
            yield key, mark, plain.get(name)
            continue
        below: Section | None = getattr(section, name, None)
        if mark is not None:
            yield key, mark, below is not None
        yield from _list_values(inner, below, f"{key}.")
