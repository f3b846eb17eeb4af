"""Pydantic's findings in plain words: what the value must be, what it is, and what to write."""

import difflib
import json
import typing
from collections.abc import Mapping
from typing import Any

from pydantic.fields import FieldInfo

from configs.reading.synonyms import SYNONYMS
from configs.schema import Section

Path = tuple[str | int, ...]
Root = type[Section]  # the model that paths start from

_KINDS = {
    "int_type": "must be a whole number",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "string_type": "must be text",
    "list_type": "must be a list",
    "tuple_type": "must be a list",
    "model_type": "must be a group of keys",
    "finite_number": "must be a finite number",
}
_BOUNDS = {
    "greater_than_equal": ("at least", "ge"),
    "greater_than": ("more than", "gt"),
    "less_than_equal": ("at most", "le"),
    "less_than": ("less than", "lt"),
}


def format_key(path: Path) -> str:
    """`("optimizer", "betas", 0)` as `optimizer.betas[0]`."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".")


def find_section(root: Root, path: Path) -> type[Section] | None:
    """The model of the section that `path` leads to."""
    section: type[Section] | None = root
    for part in path:
        field = section.model_fields.get(str(part)) if section else None
        section = _section_of(field) if field else None
    return section


def find_field(root: Root, path: Path) -> FieldInfo | None:
    names = tuple(part for part in path if isinstance(part, str))
    section = find_section(root, names[:-1]) if names else None
    return section.model_fields.get(names[-1]) if section else None


def list_keys(section: Root, prefix: str = "") -> list[str]:
    """Every dotted key of `section`."""
    keys = []
    for name, field in section.model_fields.items():
        keys.append(prefix + name)
        if inner := _section_of(field):
            keys += list_keys(inner, f"{prefix}{name}.")
    return keys


def describe_unknown_key(root: Root, path: Path) -> tuple[str, str | None]:
    """The answer to a key that does not exist, and the dotted key it suggests, if one stands out."""
    key, here = str(path[-1]), path[:-1]
    said = f"unknown key {format_key(path)}"
    section = find_section(root, here)
    siblings = [format_key((*here, name)) for name in section.model_fields] if section else []
    keys = list_keys(root)
    if (known := SYNONYMS.get(key.lower().replace("-", "_"))) and known not in (format_key(path), key):
        is_key = known in keys
        return f"{said}; here it is {known}" if is_key else f"{said}; {known}", known if is_key else None
    elsewhere = [other for other in keys if other.rpartition(".")[2] == key]
    if len(elsewhere) == 1:
        top, _, sub = elsewhere[0].rpartition(".")
        written = f"{top}: {{{sub}: …}}" if top else f"{sub}: … at the left margin"
        return f"{said}; its place is {elsewhere[0]}, so write {written}", elsewhere[0]
    if elsewhere:
        return f"{said}; its place is {' or '.join(elsewhere)}", None
    if near := difflib.get_close_matches(format_key(path), siblings, n=1, cutoff=0.6):
        return f"{said}; did you mean {near[0]}?", near[0]
    leaves = {other.rpartition(".")[2]: other for other in keys}
    if near := difflib.get_close_matches(key, leaves, n=1, cutoff=0.75):
        return f"{said}; did you mean {leaves[near[0]]}?", leaves[near[0]]
    return f"{said}; the keys here are {', '.join(section.model_fields if section else [])}", None


def describe_missing_key(root: Root, path: Path) -> str:
    field = find_field(root, path)
    what = f" ({field.description.partition(';')[0]})" if field and field.description else ""
    return f"missing key {format_key(path)}{what}; write {format_example(root, path)}"


def describe_wrong_value(
    root: Root, kind: str, path: Path, written: str, given: object, context: Mapping[str, Any], message: str
) -> str:
    """One sentence about a value: `kind` and `context` are pydantic's, `written` is the source text."""
    name = format_key(path)
    if given is None:
        return f"{name}: is empty; write {format_example(root, path)}, or remove the line"
    if kind in ("too_short", "too_long", "missing"):
        return f"{name}: the list has the wrong length; write {format_example(root, path)}"
    shown = written if not isinstance(given, str) else f"'{written}'"
    must, cure = _must(root, kind, path, given, context, message)
    return f"{name}: {must}, not {shown}" + (f"; {cure}" if cure else "")


def _must(
    root: Root, kind: str, path: Path, given: object, context: Mapping[str, Any], message: str
) -> tuple[str, str]:
    """What the value must be, and the cure."""
    if kind in _BOUNDS:
        words, key = _BOUNDS[kind]
        bound = context[key]
        return f"must be {words} {int(bound) if float(bound).is_integer() else bound}", ""
    if kind == "multiple_of" and isinstance(given, int):
        unit = int(context["multiple_of"])
        below = given // unit * unit
        return (
            f"must be a multiple of {unit}",
            f"nearest: {' and '.join(str(n) for n in (below, below + unit) if n > 0)}",
        )
    if kind == "literal_error":
        return f"must be {context['expected'].replace(chr(39), '')}", _nearest_choice(root, path, given)
    if kind == "string_too_short":
        return "must be at least one character long", f"write {format_example(root, path)}"
    if kind == "value_error":
        return message.removeprefix("Value error, "), ""
    if kind == "int_type" and isinstance(given, float) and given.is_integer():
        return "must be a whole number", f"write {int(given)}"
    if kind == "string_type" and isinstance(given, int | float):
        return "must be text", "put it in quotes"
    if kind == "model_type" and _may_be_switched(root, path):
        return "must be true, false or a group of keys", f"write {format_example(root, path)}"
    if kind in _KINDS:
        return _KINDS[kind], f"write e.g. {format_example(root, path)}"
    return message[:1].lower() + message[1:], f"write e.g. {format_example(root, path)}"


def format_example(root: Root, path: Path) -> str:
    """`key: value` for the field at `path`, with its example or its default."""
    names = tuple(part for part in path if isinstance(part, str))
    field = find_field(root, names)
    if field is None:
        return format_key(names)
    section = _section_of(field)
    value: Any = field.examples[0] if field.examples else None
    if value is None and section:
        inner = {n: f.examples[0] for n, f in section.model_fields.items() if f.is_required() and f.examples}
        value = inner or {n: f.default for n, f in list(section.model_fields.items())[:1]}
    elif value is None:
        value = field.default
    return f"{format_key(names)}: {_flow(value)}"


def _flow(value: Any) -> str:
    """A value as a person writes it on one line of YAML."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_flow(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_flow(inner) for inner in value) + "]"
    return value if isinstance(value, str) else json.dumps(value).replace("e-0", "e-")


def _nearest_choice(root: Root, path: Path, given: object) -> str:
    field = find_field(root, path)
    choices = [str(c) for c in _choices(field.annotation)] if field else []
    near = difflib.get_close_matches(str(given), choices, n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else ""


def _choices(annotation: Any) -> list[Any]:
    if typing.get_origin(annotation) is typing.Literal:
        return list(typing.get_args(annotation))
    return [choice for part in typing.get_args(annotation) for choice in _choices(part)]


def _may_be_switched(root: Root, path: Path) -> bool:
    field = find_field(root, path)
    return bool(field and field.examples and field.examples[0] is True)


def _section_of(field: FieldInfo) -> type[Section] | None:
    for part in (field.annotation, *typing.get_args(field.annotation)):
        if isinstance(part, type) and issubclass(part, Section):
            return part
    return None
