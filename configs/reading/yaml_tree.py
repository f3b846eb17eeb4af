"""YAML text to a tree that remembers where each value stands. Reads the YAML 1.2 core scalars, not PyYAML's 1.1 ones.

In YAML 1.1 `12:00:00` is 43200, `1e-5` is text, `on` is true and `0777` is 511. Here a plain scalar is `true` or
`false`, null, a decimal number, or else the text as written; a quoted scalar is always text.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import yaml

from configs.errors import ConfigError, Problem

Scalar = str | int | float | bool | None
Plain = Scalar | list["Plain"] | dict[str, "Plain"]

MAPPING = "a mapping"  # the source of a Node that holds keys

_INT = re.compile(r"[-+]?(?:0|[1-9][0-9]*(?:_[0-9]+)*)")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|(?:0|[1-9][0-9]*(?:_[0-9]+)*)(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_WORDS: dict[str, bool | None] = {"true": True, "false": False, "null": None, "~": None, "": None}


def parse_scalar(text: str) -> Scalar:
    """The value of a plain (unquoted) scalar."""
    if text in _WORDS:
        return _WORDS[text]
    if _INT.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    return text


@dataclass(frozen=True)
class Node:
    """A value, where it stands (`file:line:column`, or `command line`) and what the user wrote for it."""

    value: "Scalar | list[Node] | dict[str, Node]"
    place: str
    source: str
    key_place: str = ""  # where the key of this value stands, in a mapping

    def plain(self) -> Plain:
        """The values alone, as pydantic takes them."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain() for node in self.value]
        return self.value

    def at(self, path: tuple[str | int, ...]) -> "Node | None":
        """The node that `path` (keys and list indices) leads to, None where there is none."""
        if not path:
            return self
        key, rest = path[0], path[1:]
        child: Node | None = None
        if isinstance(self.value, dict):
            child = self.value.get(str(key))
        elif isinstance(self.value, list) and isinstance(key, int) and key < len(self.value):
            child = self.value[key]
        return child.at(rest) if child else None


def read_file(path: Path, problems: list[Problem]) -> Node:
    """The tree of a YAML file; what is wrong but leaves the rest readable is added to `problems`.

    Raises ConfigError where there is no tree at all: no file, not UTF-8, not YAML.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise _refuse(str(path), "no such file; name the YAML file of the run") from None
    except IsADirectoryError:
        raise _refuse(str(path), "is a folder; name the YAML file of the run") from None
    except OSError as error:
        raise _refuse(str(path), f"cannot be read ({error.strerror})") from None
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = content[: error.start]
        line, column = before.count(b"\n") + 1, error.start - (before.rfind(b"\n") + 1) + 1
        raise _refuse(f"{path}:{line}:{column}", "is not UTF-8; save the file as UTF-8") from None
    return _Builder(text, str(path), problems).document()


def read_value(text: str, place: str, problems: list[Problem]) -> Node:
    """The tree of one value given outside a file, by the same rules."""
    return _Builder(text, "", problems, place).document()


def _refuse(place: str, what: str) -> ConfigError:
    return ConfigError([Problem(place, what)])


class _Mark(Protocol):
    line: int
    column: int


class _Builder:
    """One pass over the parser's events."""

    def __init__(self, text: str, file: str, problems: list[Problem], place: str | None = None):
        self.text, self.file, self.fixed_place, self.problems = text, file, place, problems
        self.anchors: dict[str, Node] = {}

    def document(self) -> Node:
        try:
            self.events: Iterator[yaml.Event] = yaml.parse(self.text, Loader=yaml.SafeLoader)
            next(self.events)  # stream start
            if isinstance(next(self.events), yaml.StreamEndEvent):
                return Node(None, self.fixed_place or f"{self.file}:1:1", "")
            root = self.node(next(self.events))
            next(self.events)  # document end
            if not isinstance(after := next(self.events), yaml.StreamEndEvent):
                raise _refuse(self.place(after.start_mark), "a second document begins; keep one run in one file")
        except yaml.MarkedYAMLError as error:
            raise self.syntax(error) from None
        except yaml.reader.ReaderError as error:
            line = self.text.count("\n", 0, error.position) + 1
            column = error.position - (self.text.rfind("\n", 0, error.position) + 1) + 1
            place = self.fixed_place or f"{self.file}:{line}:{column}"
            raise _refuse(place, f"the character U+{int(error.character):04X} is not allowed in YAML") from None
        return root

    def syntax(self, error: yaml.MarkedYAMLError) -> ConfigError:
        mark = error.problem_mark or error.context_mark
        what = f"is not valid YAML: {error.problem or error.context}"
        if error.context and error.problem:
            what += f" {error.context}"
        if "'\\t'" in what:
            what += "; indent with spaces, not tabs"
        elif "mapping values are not allowed" in what:
            what += "; put quotes around text that holds ': ', and check the indentation"
        elif "could not find expected ':'" in what:
            what += "; each line is `key: value`"
        elif "alias" in what or "undefined" in what:
            what += "; put quotes around text that begins with '*' or '&'"
        return _refuse(self.place(mark), what)

    def place(self, mark: _Mark | None) -> str:
        if self.fixed_place is not None:
            return self.fixed_place
        return f"{self.file}:{mark.line + 1}:{mark.column + 1}" if mark else self.file

    def node(self, event: yaml.Event) -> Node:
        place = self.place(event.start_mark)
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in self.anchors:
                raise _refuse(
                    place, f"*{event.anchor} names no anchor above it; write &{event.anchor} before its value"
                )
            original = self.anchors[event.anchor]
            return Node(original.value, place, original.source)
        assert isinstance(event, yaml.NodeEvent)
        if tag := getattr(event, "tag", None):
            self.problems.append(Problem(place, f"the tag {tag} is not read; write the plain value without it"))
        if isinstance(event, yaml.ScalarEvent):
            value = parse_scalar(event.value) if event.style is None else event.value
            built = Node(value, place, event.value)
        elif isinstance(event, yaml.SequenceStartEvent):
            items = []
            while not isinstance(inner := next(self.events), yaml.SequenceEndEvent):
                items.append(self.node(inner))
            built = Node(items, place, "a list")
        else:
            built = Node(self.mapping(), place, MAPPING)
        if event.anchor:
            self.anchors[event.anchor] = built
        return built

    def mapping(self) -> dict[str, Node]:
        entries: dict[str, Node] = {}
        while not isinstance(event := next(self.events), yaml.MappingEndEvent):
            key = self.node(event)
            if isinstance(key.value, dict | list):
                raise _refuse(key.place, f"{key.source} stands where a key is expected; write `key: value`")
            value = self.node(next(self.events))
            if key.source == "<<":
                self.problems.append(Problem(key.place, "the merge key << is not read; write its keys out"))
            elif key.source in entries:
                first = entries[key.source].key_place
                self.problems.append(Problem(key.place, f"{key.source} is set twice, first at {first}; keep one"))
            else:
                entries[key.source] = Node(value.value, value.place, value.source, key.place)
        return entries
