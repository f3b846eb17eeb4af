"""Pydantic's findings in plain words: what the value must be, what it is, and what to write."""

import difflib
import json
import typing
from typing import Any

from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from configs.reading.synonyms import SYNONYMS
from configs.schema import Section, get_entry_section, get_section

Path = tuple[str | int, ...]
Root = type[Section]  # the model that paths start from

_KINDS = {
    "int_type": "must be a whole number",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "string_type": "must be text",
    "list_type": "must be a list",
    "tuple_type": "must be a list",
    "model_type": "must be a mapping (key: value lines)",
    "finite_number": "must be a finite number",
    "string_pattern_mismatch": "must be one word of letters, digits and underscores",
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
    """The model of the section that `path` leads to; list indices in it do not matter."""
    section: type[Section] | None = root
    for part in path:
        if isinstance(part, int):
            continue
        field = section.model_fields.get(part) if section else None
        section = (get_section(field) or get_entry_section(field)) if field else None
    return section


def find_field(root: Root, path: Path) -> FieldInfo | None:
    """The field of the key that `path` leads to; list indices in it do not matter."""
    names = tuple(part for part in path if isinstance(part, str))
    if not names:
        return None
    section = find_section(root, names[:-1])
    return section.model_fields.get(names[-1]) if section is not None else None


def list_keys(section: Root, prefix: str = "") -> list[str]:
    """Every dotted key of `section`."""
    keys = []
    for name, field in section.model_fields.items():
        keys.append(prefix + name)
        if inner := get_section(field):
            keys += list_keys(inner, f"{prefix}{name}.")
    return keys


def describe_unknown_key(root: Root, path: Path) -> tuple[str, str | None]:
    """The answer to a key that does not exist, and the dotted key it suggests, if one stands out."""
    cure, suggestion = _find_meant_key(root, path)
    return f"unknown key {format_key(path)}; {cure}", suggestion


def _find_meant_key(root: Root, path: Path) -> tuple[str, str | None]:
    """What other trainers call so, else the same key elsewhere, else one that is spelled alike, here or elsewhere."""
    key, name, keys = format_key(path), str(path[-1]), list_keys(root)
    synonym = SYNONYMS.get(name.lower().replace("-", "_"))
    if synonym is not None and synonym not in (key, name):
        return (f"here it is {synonym}", synonym) if synonym in keys else (synonym, None)
    elsewhere = [other for other in keys if other.rpartition(".")[2] == name]
    if len(elsewhere) == 1:
        section, _, inner = elsewhere[0].rpartition(".")
        line = f"{section}: {{{inner}: …}}" if section else f"{inner}: … at the left margin"
        return f"its place is {elsewhere[0]}, so write {line}", elsewhere[0]
    if elsewhere:
        return f"its place is {' or '.join(elsewhere)}", None
    section_here = find_section(root, path[:-1])
    siblings = [format_key((*path[:-1], sibling)) for sibling in section_here.model_fields] if section_here else []
    alike = difflib.get_close_matches(key, siblings, n=1, cutoff=0.6)
    if alike:
        return f"did you mean {alike[0]}?", alike[0]
    by_last_name = {other.rpartition(".")[2]: other for other in keys}
    alike = difflib.get_close_matches(name, by_last_name, n=1, cutoff=0.75)
    if alike:
        return f"did you mean {by_last_name[alike[0]]}?", by_last_name[alike[0]]
    return f"the keys here are {', '.join(section_here.model_fields if section_here else [])}", None


def describe_missing_key(root: Root, path: Path) -> str:
    """One sentence: the key, its meaning, and a line that would do."""
    field = find_field(root, path)
    meaning = field.description.partition(";")[0] if field is not None and field.description else None
    explained = f" ({meaning})" if meaning else ""
    return f"missing key {format_key(path)}{explained}; write {format_example(root, path)}"


def describe_wrong_value(root: Root, error: ErrorDetails, written: str, given: object) -> str:
    """One sentence about the value `given`, for which the source text is `written`."""
    path = error["loc"]
    name = format_key(path)
    if given is None:
        return f"{name}: is empty; write {format_example(root, path)}, or remove the line"
    if error["type"] in ("too_short", "too_long", "missing"):
        return f"{name}: the list has the wrong length; write {format_example(root, path)}"
    shown = f"'{written}'" if isinstance(given, str) else written
    must, cure = _must(root, error, given)
    if error["type"] == "value_error" and isinstance(given, list):  # the sentence says what is wrong in it
        return f"{name}: {must}"
    return f"{name}: {must}, not {shown}" + (f"; {cure}" if cure else "")


def _must(root: Root, error: ErrorDetails, given: object) -> tuple[str, str]:
    """What the value must be, and the cure."""
    kind, path, context = error["type"], error["loc"], error.get("ctx", {})
    if kind in _BOUNDS:
        words, key = _BOUNDS[kind]
        bound = context[key]
        return f"must be {words} {int(bound) if float(bound).is_integer() else bound}", ""
    if kind == "multiple_of" and isinstance(given, int):
        unit = int(context["multiple_of"])
        below = given // unit * unit
        nearest = " and ".join(str(multiple) for multiple in (below, below + unit) if multiple > 0)
        return f"must be a multiple of {unit}", f"nearest: {nearest}"
    if kind == "literal_error":
        return f"must be {context['expected'].replace(chr(39), '')}", _nearest_choice(root, path, given)
    if kind == "string_too_short":
        return "must be at least one character long", f"write {format_example(root, path)}"
    if kind == "value_error":
        return error["msg"].removeprefix("Value error, "), ""
    if kind == "int_type" and isinstance(given, float) and given.is_integer():
        return "must be a whole number", f"write {int(given)}"
    if kind == "string_type" and isinstance(given, int | float):
        return "must be text", "put it in quotes"
    if kind == "model_type" and _may_be_switched(root, path):
        return "must be true, false or a mapping (key: value lines)", f"write {format_example(root, path)}"
    must = _KINDS.get(kind, error["msg"][:1].lower() + error["msg"][1:])
    return must, f"write e.g. {format_example(root, path)}"


def format_example(root: Root, path: Path) -> str:
    """`key: value` for the field at `path`, with its example or its default."""
    keys = tuple(part for part in path if isinstance(part, str))
    if find_field(root, keys) is None:
        return format_key(keys)
    entries = [number for number, part in enumerate(path[:-1]) if isinstance(part, int)]
    shown = path[entries[-1] + 1 :] if entries else keys  # of an entry of a list its own key
    return f"{format_key(shown)}: {_flow(find_example(root, keys))}"


def find_example(root: Root, path: Path) -> Any:
    """A value that the key at `path` may have: its example, or that of the keys it needs, or its default."""
    field = find_field(root, path)
    assert field is not None
    if field.examples:
        return field.examples[0]
    section = get_section(field)
    if section is None:
        return field.default
    fields = section.model_fields.items()
    required = {name: inner.examples[0] for name, inner in fields if inner.is_required() and inner.examples}
    return required or {name: inner.default for name, inner in list(fields)[:1]}


def _flow(value: Any) -> str:
    """A value as a person writes it on one line of YAML."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_flow(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_flow(inner) for inner in value) + "]"
    return value if isinstance(value, str) else json.dumps(value).replace("e-0", "e-")


def _nearest_choice(root: Root, path: Path, given: object) -> str:
    field = find_field(root, path)
    choices = [str(choice) for choice in _choices(field.annotation)] if field is not None else []
    alike = difflib.get_close_matches(str(given), choices, n=1, cutoff=0.5)
    return f"did you mean {alike[0]}?" if alike else ""


def _choices(annotation: Any) -> list[Any]:
    if typing.get_origin(annotation) is typing.Literal:
        return list(typing.get_args(annotation))
    return [choice for part in typing.get_args(annotation) for choice in _choices(part)]


def _may_be_switched(root: Root, path: Path) -> bool:
    field = find_field(root, path)
    return bool(field and field.examples and field.examples[0] is True)
