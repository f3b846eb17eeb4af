"""A config file and `key.sub=value` words to a RunConfig, and back to YAML text.

Everything that is wrong is reported at once, each as `file:line:column: what, why, cure`; what came from the command
line says `command line` instead of a place in a file.
"""

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from configs.changes import get_mark
from configs.errors import ConfigError, Problem
from configs.model_file import MODEL_SUFFIXES
from configs.reading import messages
from configs.reading.yaml_tree import MAPPING, Node, parse_scalar, read_file, read_value
from configs.schema import DISAGREEMENT, LENGTHS, Disagreement, RunConfig, Section, get_entry_section

COMMAND_LINE = "command line"
RENAMED = {"schedule": "lr_schedule"}  # what a key was called in earlier versions: what they wrote is still read
S = TypeVar("S", bound=Section)

_OVERRIDE = re.compile(r"([A-Za-z_][\w-]*(?:\.[\w-]+)*)=(.*)", re.DOTALL)
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_MODELS = (("model",), ("pipeline_config",))  # keys of a path or a hub id
SCHEMA_FILE = Path(__file__).parents[1] / "recipes" / "schema.json"


def load_config(path: str | Path, overrides: Iterable[str] = ()) -> RunConfig:
    """Read the config at `path`, with `key.sub=value` words on top.

    Paths written in the file are relative to the file's folder, paths written on the command line to the working
    directory; the result holds absolute ones. The name defaults to the file's. Raises ConfigError with all problems.
    """
    file, problems = Path(path), list[Problem]()
    tree = _with_present_names(_read_mapping(file, RunConfig, problems))
    for word in overrides:
        tree = _override(tree, word, problems)
    tree = _with_defaults(tree, file)
    tree = _resolve_paths(tree, file, problems)
    return _validate(RunConfig, tree, problems)


def load_section(path: Path, root: type[S]) -> S:
    """Read another file of keys by the same rules. Raises ConfigError with all problems."""
    problems = list[Problem]()
    return _validate(root, _read_mapping(path, root, problems), problems)


def _read_mapping(file: Path, root: type[Section], problems: list[Problem]) -> Node:
    tree = read_file(file, problems)
    if tree.value is None:
        raise ConfigError([Problem(tree.place, f"the file is empty; write at least {_least(root)}")])
    if not isinstance(tree.value, dict):
        what = f"must be a mapping (key: value lines), not {tree.source}; write at least {_least(root)}"
        raise ConfigError([Problem(tree.place, what)])
    return Node(tree.value, f"{file}:1:1", tree.source)


def _validate(root: type[S], tree: Node, problems: list[Problem]) -> S:
    read = None
    try:
        read = root.model_validate(tree.plain())
    except ValidationError as error:
        problems += _explain(root, error, tree)
    if problems or read is None:
        raise ConfigError(sorted(dict.fromkeys(problems), key=_in_file_order))
    return read


def dump_config(config: RunConfig) -> str:
    """`config` as YAML text that `load_config` reads back equal: paths absolute, defaults written out but for those of
    keys that only cost, which the machine of a resume may decide anew."""
    header = f"# yaml-language-server: $schema={SCHEMA_FILE}\n"
    return header + yaml.dump(_written(config), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def _written(section: Section) -> dict[str, Any]:
    """The section's values for YAML.

    Without nulls that say no more than the default, and without the `cost` keys that the user left open: the batch may
    decide the shape, and a later release the rest.
    """
    data: dict[str, Any] = {}
    plain = section.model_dump(mode="json")
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, Section):
            data[name] = _written(value)
        elif value is not None and get_entry_section(field) is not None:
            data[name] = [_written(entry) for entry in value]
        elif get_mark(field) == "cost" and name not in section.model_fields_set:
            continue
        elif value is not None or field.default is not None:
            data[name] = plain[name]
    return data


class _Dumper(yaml.SafeDumper):
    """Quotes text that our rules would read as something else, such as '1e5'."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    plain = isinstance(parse_scalar(text), str) and text.isprintable()  # U+0085 and its like are line breaks to YAML
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if plain else '"')


_Dumper.add_representer(str, _represent_text)


def _least(root: type[Section]) -> str:
    """The lines that a file needs, or the first key where it needs none."""
    required = [name for name, field in root.model_fields.items() if field.is_required() and name != "name"]
    shown = required or list(root.model_fields)[:1]
    return " and ".join(messages.format_example(root, (name,)) for name in shown)


def _with_present_names(tree: Node) -> Node:
    """`tree` with the names that keys have today; a key that is there under both stays, and is refused."""
    assert isinstance(tree.value, dict)
    entries = {}
    for key, node in tree.value.items():
        name = RENAMED.get(key, key)
        entries[key if name in tree.value else name] = node
    return Node(entries, tree.place, tree.source, tree.key_place)


def _override(tree: Node, word: str, problems: list[Problem]) -> Node:
    match = _OVERRIDE.fullmatch(word)
    if not match:
        problems.append(Problem(COMMAND_LINE, f"'{word}' is not key=value; write e.g. batch=256 or data.flip=true"))
        return tree
    key = RENAMED.get(match[1], match[1])
    try:
        value = read_value(match[2], COMMAND_LINE, problems)
    except ConfigError as error:
        problems += [Problem(COMMAND_LINE, f"{key}: {problem.what}") for problem in error.problems]
        return tree
    return _put(_without_other_lengths(tree, key), key.split("."), value)


def _without_other_lengths(tree: Node, key: str) -> Node:
    """A length on the command line takes the place of the file's, whichever unit that one is in."""
    assert isinstance(tree.value, dict)
    if key not in LENGTHS:
        return tree
    kept = {k: v for k, v in tree.value.items() if k not in LENGTHS or _key_place(v) == COMMAND_LINE}
    return Node(kept, tree.place, tree.source, tree.key_place)


def _put(tree: Node, keys: list[str], value: Node) -> Node:
    """`tree` with `value` at `keys`. A value that is no mapping gives way: `ema: true` then `ema.decay=0.999`."""
    if not keys:
        return Node(value.value, value.place, value.source, COMMAND_LINE)
    entries = dict(tree.value) if isinstance(tree.value, dict) else {}
    below = entries.get(keys[0], Node({}, COMMAND_LINE, MAPPING, COMMAND_LINE))
    entries[keys[0]] = _put(below, keys[1:], value)
    return Node(entries, tree.place, MAPPING, tree.key_place)


def _with_defaults(tree: Node, file: Path) -> Node:
    """The two defaults that the file itself gives: its stem names the run, its folder holds `runs`."""
    assert isinstance(tree.value, dict)
    place = f"{file}:1:1"
    defaults = {
        "name": Node(file.stem, place, file.stem, place),
        "runs": Node("./runs", place, "./runs", place),
    }
    return Node({**defaults, **tree.value}, tree.place, tree.source)


def _resolve_paths(tree: Node, file: Path, problems: list[Problem]) -> Node:
    """`tree` with absolute paths; a model that is no folder or file here must be a hub id."""
    plain = (("data", "images"), ("data", "cache_folder"), ("runs",), *_list_source_paths(tree))
    for keys in (*plain, *_MODELS):
        node = tree.at(keys)
        if node is None or not isinstance(node.value, str) or not node.value:
            continue
        folder = Path.cwd() if node.place == COMMAND_LINE else file.absolute().parent
        path = os.path.normpath(folder / os.path.expanduser(node.value))
        is_path = keys in plain or node.value.startswith((".", "/", "~")) or os.path.isdir(path)
        is_path = is_path or node.value.endswith(MODEL_SUFFIXES)
        if is_path:
            tree = _replace(tree, keys, path)
        elif not _HUB_ID.fullmatch(node.value):
            example = messages.format_example(RunConfig, keys)
            what = f"'{node.value}' is neither a folder beside the config nor a hub id"
            cure = f"write {example}, or the path of a diffusers folder"
            problems.append(Problem(node.place, f"{keys[0]}: {what}; {cure}"))
    return tree


def _list_source_paths(tree: Node) -> list[tuple[str | int, ...]]:
    """Where paths stand in data.sources."""
    sources = tree.at(("data", "sources"))
    count = len(sources.value) if sources is not None and isinstance(sources.value, list) else 0
    return [("data", "sources", number, key) for number in range(count) for key in ("images", "parquet", "tars")]


def _replace(tree: Node, keys: tuple[str | int, ...], value: str) -> Node:
    """`tree` with the value at `keys` exchanged; places stay."""
    if not keys:
        return Node(value, tree.place, tree.source, tree.key_place)
    below = tree.at(keys[:1])
    assert below is not None
    changed = _replace(below, keys[1:], value)
    if isinstance(tree.value, list):
        entries = [changed if number == keys[0] else entry for number, entry in enumerate(tree.value)]
        return Node(entries, tree.place, tree.source, tree.key_place)
    assert isinstance(tree.value, dict)
    return Node({**tree.value, str(keys[0]): changed}, tree.place, tree.source, tree.key_place)


def _explain(root: type[Section], error: ValidationError, tree: Node) -> list[Problem]:
    """All that pydantic found, and where each stands."""
    errors = error.errors(include_url=False)
    problems: list[Problem] = []
    suggested: set[str] = set()
    for found in errors:
        if found["type"] == "extra_forbidden":
            text, suggestion = messages.describe_unknown_key(root, found["loc"])
            problems.append(Problem(_place_of_key(tree, found["loc"]), text))
            if suggestion is not None:
                suggested.add(suggestion)
    for found in errors:
        path = found["loc"]
        if found["type"] in ("extra_forbidden", DISAGREEMENT):
            continue
        if found["type"] != "missing" or isinstance(path[-1], int):
            problems.append(_explain_value(root, found, tree))
        elif messages.format_key(path) not in suggested:  # a mistyped key answers for the key it stands for
            problems.append(Problem(_place_of_key(tree, path[:-1]), messages.describe_missing_key(root, path)))
    wrong = {str(found["loc"][0]) for found in errors if found["loc"]}
    wrong |= {key.partition(".")[0] for key in suggested}
    return problems + _explain_disagreements(root, wrong, tree)


def _explain_value(root: type[Section], error: ErrorDetails, tree: Node) -> Problem:
    node = tree.at(error["loc"])
    if node is None:  # an entry that a list lacks
        error = {**error, "loc": error["loc"][:-1]}
        node = tree.at(error["loc"])
    if node is None:
        return Problem(tree.place, messages.describe_wrong_value(root, error, "", None))
    return Problem(node.place, messages.describe_wrong_value(root, error, node.source, node.plain()))


def _explain_disagreements(root: type[Section], wrong: set[str], tree: Node) -> list[Problem]:
    """Keys that are right alone and wrong together.

    Pydantic looks for them only where every key is right: so once more without those that are `wrong`, with an example
    in the place of each that must be there. What disagrees with a wrong key is not told.
    """
    plain = tree.plain()
    assert isinstance(plain, dict)
    right: dict[str, Any] = {key: value for key, value in plain.items() if key not in wrong}
    for name, field in root.model_fields.items():
        if field.is_required() and name not in right:
            right[name] = messages.find_example(root, (name,))
    disagreements: list[Disagreement] = []
    try:
        root.model_validate(right)
    except ValidationError as error:
        for found in error.errors(include_url=False):
            disagreements += found["ctx"]["all"] if found["type"] == DISAGREEMENT else []
    return [
        Problem(_place_of_key(tree, _parse_key(disagreement.keys[0])), disagreement.sentence)
        for disagreement in disagreements
        if wrong.isdisjoint(key.partition(".")[0] for key in disagreement.keys)
    ]


def _parse_key(key: str) -> tuple[str | int, ...]:
    """`data.sources.0.images` as the path that leads there."""
    return tuple(int(part) if part.isdigit() else part for part in key.split("."))


def _place_of_key(tree: Node, path: tuple[str | int, ...]) -> str:
    node = tree.at(path)
    return _key_place(node) if node is not None else tree.place


def _key_place(node: Node) -> str:
    return node.key_place or node.place


def _in_file_order(problem: Problem) -> tuple[int, int]:
    """Line and column; what came from the command line stands last."""
    match = re.search(r":(\d+):(\d+)$", problem.place)
    return (int(match[1]), int(match[2])) if match else (1 << 62, 0)
