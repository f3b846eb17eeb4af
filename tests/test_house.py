"""How the house is kept: sizes, names, imports and docstrings of the five packages; each check is itself tested."""

import ast
import re
import textwrap
from collections.abc import Callable, Iterator

import pytest

from tests.sources import Source, import_graph, read_sources

FILE_LINES, FUNCTION_LINES, PARAMETERS, ONE_WORD_SHARE = 300, 60, 6, 0.20
# say nothing of the value: an allocation, the args, stderr_text
EMPTY_NAMES = {"of", "said", "where", "there", "asked"}
Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions_of(source: Source) -> list[Function]:
    return [node for node in ast.walk(source.tree) if isinstance(node, Function)]


def is_command(function: Function) -> bool:
    """Whether click calls it: its name and parameters are what a user types."""
    decorators = [ast.unparse(decorator) for decorator in function.decorator_list]
    return any(re.match(r"(\w+\.)*(command|group)\b", decorator) for decorator in decorators)


def is_program(source: Source) -> bool:
    """Whether `python -m` runs it."""
    return source.file.endswith("__main__.py") or "__name__ == " in source.text


def find_long_files(sources: list[Source]) -> list[str]:
    lengths = {source.file: source.text.count("\n") for source in sources}
    return [f"{file}: {length} lines" for file, length in lengths.items() if length > FILE_LINES]


def find_long_functions(sources: list[Source]) -> list[str]:
    problems = []
    for source in sources:
        for function in functions_of(source):
            length = (function.end_lineno or function.lineno) - function.lineno + 1
            if length > FUNCTION_LINES:
                problems.append(f"{source.file}:{function.lineno}: {function.name} has {length} lines")
    return problems


def find_long_signatures(sources: list[Source]) -> list[str]:
    problems = []
    for source in sources:
        for function in functions_of(source):
            arguments = function.args
            positional = [*arguments.posonlyargs, *arguments.args]
            own = [a for a in positional + arguments.kwonlyargs if a.arg not in ("self", "cls")]
            count = len(own) + (arguments.vararg is not None) + (arguments.kwarg is not None)
            if count > PARAMETERS and not is_command(function):
                problems.append(f"{source.file}:{function.lineno}: {function.name} takes {count}")
    return problems


def public_names(source: Source) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]:
    """Its functions and classes that others may import."""
    for node in source.tree.body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            yield node


def find_names_in_two_files(sources: list[Source]) -> list[str]:
    """But for what users type (click's commands among themselves, `main` of a program)."""
    files: dict[str, list[str]] = {}
    typed: dict[str, list[str]] = {}
    for source in sources:
        for node in public_names(source):
            if isinstance(node, Function) and is_command(node):
                typed.setdefault(node.name, []).append(source.file)
            elif not (node.name == "main" and is_program(source)):
                files.setdefault(node.name, []).append(source.file)
    places = {name: own + typed.get(name, []) for name, own in sorted(files.items())}
    return [f"{name}: {', '.join(in_files)}" for name, in_files in places.items() if len(in_files) > 1]


def find_one_word_functions(sources: list[Source]) -> list[str]:
    """The public functions of one word, where these are more than their share of all."""
    functions = [
        (source, node)
        for source in sources
        for node in public_names(source)
        if isinstance(node, Function) and not is_command(node)
    ]
    short = [f"{source.file}: {node.name}" for source, node in functions if "_" not in node.name]
    if len(short) <= ONE_WORD_SHARE * len(functions):
        return []
    return [f"{len(short)} of {len(functions)} public functions are one word:", *short]


def find_empty_names(sources: list[Source]) -> list[str]:
    """Values whose name says nothing: assigned, looped over, taken as a parameter or imported under that name."""
    problems = []
    for source in sources:
        for node in ast.walk(source.tree):
            name, line = _bound_name(node)
            if name in EMPTY_NAMES:
                problems.append(f"{source.file}:{line}: {name}")
    return problems


def _bound_name(node: ast.AST) -> tuple[str | None, int]:
    match node:
        case ast.Name(id=name, ctx=ast.Store(), lineno=line):
            return name, line
        case ast.Attribute(attr=name, ctx=ast.Store(), lineno=line):
            return name, line
        case ast.arg(arg=name, lineno=line):
            return name, line
        case ast.alias(asname=name, lineno=line):
            return name, line
        case ast.ExceptHandler(name=name, lineno=line):
            return name, line
        case ast.MatchAs(name=name, lineno=line) | ast.MatchStar(name=name, lineno=line):
            return name, line
    return None, 0


def find_circles(sources: list[Source]) -> list[str]:
    """Modules that import each other, directly or through others."""
    graph = import_graph(sources)
    reached = {module: _reach(graph, module) for module in graph}
    circles = {
        frozenset(other for other in graph if other in reached[module] and module in reached[other])
        for module in graph
        if module in reached[module]
    }
    return [" ↔ ".join(sorted(circle)) for circle in circles]


def _reach(graph: dict[str, set[str]], start: str) -> set[str]:
    """Every module that `start` imports, directly or through others."""
    reached: set[str] = set()
    waiting = [start]
    while waiting:
        new = graph[waiting.pop()] - reached
        reached |= new
        waiting += new
    return reached


def find_unnamed_folders(sources: list[Source]) -> list[str]:
    """Folders of modules without an `__init__.py` whose docstring says what lies in them."""
    files = {source.file: source for source in sources}
    folders = sorted({file.rpartition("/")[0] for file in files})
    unnamed = []
    for folder in folders:
        room = files.get(f"{folder}/__init__.py")
        if room is None or not ast.get_docstring(room.tree):
            unnamed.append(f"{folder}/__init__.py")
    return unnamed


CHECKS: dict[Callable[[list[Source]], list[str]], str] = {
    find_long_files: f"files of more than {FILE_LINES} lines",
    find_long_functions: f"functions of more than {FUNCTION_LINES} lines",
    find_long_signatures: f"functions of more than {PARAMETERS} parameters (only click's commands may)",
    find_names_in_two_files: "public names that stand in two files",
    find_one_word_functions: f"more than {ONE_WORD_SHARE:.0%} of the public functions are one word: use verb_noun",
    find_empty_names: "names that say nothing of their value",
    find_circles: "modules that import each other in a circle",
    find_unnamed_folders: "folders of modules without a docstring in their __init__.py",
}


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_house_is_kept(check: Callable[[list[Source]], list[str]]) -> None:
    problems = check(read_sources())
    assert not problems, f"{CHECKS[check]}:\n  " + "\n  ".join(problems)


def function(lines: int = 2, parameters: str = "", before: str = "", name: str = "make_run") -> str:
    return f"{before}def {name}({parameters}):\n" + "    pass\n" * (lines - 1)


def in_class(text: str) -> str:
    return "class A:\n" + textwrap.indent(text, "    ")


COMMAND = "@cli.command()\n"
SEVEN = "a, b, c, d, e, f, g"
MANY = "".join(function(name=f"make_{number}") for number in range(4))
Case = tuple[Callable[[list[Source]], list[str]], dict[str, str], str]
BAD: list[Case] = [
    (find_long_files, {"store/a.py": "x = 1\n" * 301}, "store/a.py: 301 lines"),
    (find_long_functions, {"store/a.py": function(61)}, "store/a.py:1: make_run has 61 lines"),
    (find_long_functions, {"store/a.py": in_class(function(61, before="async "))}, "61 lines"),
    (find_long_signatures, {"store/a.py": function(parameters=SEVEN)}, "store/a.py:1: make_run takes 7"),
    (find_long_signatures, {"store/a.py": function(parameters="a, *b, c, d, e, f, **g")}, "takes 7"),
    (find_long_signatures, {"store/a.py": "class A:\n    def b(self, a, b, *, c, d, e, f, g): ...\n"}, "b takes 7"),
    (find_long_signatures, {"store/a.py": function(parameters=SEVEN, before="@cache\n")}, "takes 7"),
    (find_names_in_two_files, {"store/a.py": function(), "train/b.py": function()}, "make_run: store/a.py, train/b.py"),
    (find_names_in_two_files, {"a.py": "class A: ...\n", "b.py": "class A: ...\n"}, "A: a.py, b.py"),
    (find_names_in_two_files, {"a.py": function(name="main"), "b.py": function(name="main")}, "main: a.py, b.py"),
    (
        find_names_in_two_files,
        {"a.py": function(), "b.py": function(before=COMMAND)},
        "make_run: a.py, b.py",
    ),
    (find_one_word_functions, {"a.py": MANY + function(name="make") + function(name="cut")}, "2 of 6"),
    (find_empty_names, {"a.py": "said = 1\n"}, "a.py:1: said"),
    (find_empty_names, {"a.py": "def make_run(x, *, where): ...\n"}, "where"),
    (find_empty_names, {"a.py": "for a, of in {}: ...\n"}, "of"),
    (find_empty_names, {"a.py": "x = [there for there in ()]\n"}, "there"),
    (find_empty_names, {"a.py": "print(asked := 1)\n"}, "asked"),
    (find_empty_names, {"a.py": "from launcher import logs as of\n"}, "of"),
    (find_empty_names, {"a.py": "class A:\n    def b(self):\n        self.asked = 1\n"}, "a.py:3: asked"),
    (find_circles, {"store/a.py": "import store.b\n", "store/b.py": "from store import a\n"}, "store.a ↔ store.b"),
    (
        find_circles,
        {"a.py": "def f():\n    import b\n", "b.py": "import c\n", "c.py": "from a import f\n"},
        "a ↔ b ↔ c",
    ),
    (find_circles, {"store/__init__.py": "import store.a\n", "store/a.py": "from store import X\n"}, "store ↔ store.a"),
    (find_unnamed_folders, {"store/a.py": "x = 1\n"}, "store/__init__.py"),
    (find_unnamed_folders, {"store/__init__.py": "x = 1\n"}, "store/__init__.py"),
]
PROGRAM = function(name="main") + 'if __name__ == "__main__":\n    main()\n'
TYPES = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import {0}\n"
GOOD: list[tuple[Callable[[list[Source]], list[str]], dict[str, str]]] = [
    (find_long_files, {"store/a.py": "x = 1\n" * 300}),
    (find_long_functions, {"store/a.py": function(60)}),
    (find_long_signatures, {"store/a.py": "class A:\n    def b(self, a, b, *, c, d, e, f): ...\n"}),
    (find_long_signatures, {"store/a.py": function(parameters=SEVEN, before='@cli.command()\n@click.option("-f")\n')}),
    (find_names_in_two_files, {"a.py": PROGRAM, "train/__main__.py": function(name="main")}),
    (find_names_in_two_files, {"a.py": function(name="_of"), "b.py": function(name="_of")}),
    (find_names_in_two_files, {file: function(before=COMMAND) for file in ("a.py", "b.py")}),
    (find_one_word_functions, {"a.py": MANY + function(name="make")}),
    (
        find_one_word_functions,
        {"a.py": MANY + function(name="make") + function(name="plan", before=COMMAND)},
    ),
    (find_empty_names, {"a.py": "print(of, x.where)\nwhereabouts = 1\n"}),
    (find_circles, {"a.py": TYPES.format("b"), "b.py": "import a\n"}),
    (find_circles, {"store/__init__.py": "import store.a\n", "store/a.py": "import store.b\n", "store/b.py": ""}),
    (find_unnamed_folders, {"store/__init__.py": '"""What lies on disk."""\n', "store/a.py": "x = 1\n"}),
]


def made_up(files: dict[str, str]) -> list[Source]:
    return [Source(file, text) for file, text in files.items()]


@pytest.mark.parametrize(("check", "files", "problem"), BAD)
def test_a_check_finds_what_is_wrong(
    check: Callable[[list[Source]], list[str]], files: dict[str, str], problem: str
) -> None:
    problems = check(made_up(files))
    assert any(problem in line for line in problems), problems


@pytest.mark.parametrize(("check", "files"), GOOD)
def test_a_check_leaves_alone_what_is_right(check: Callable[[list[Source]], list[str]], files: dict[str, str]) -> None:
    assert check(made_up(files)) == []


def test_every_check_is_proved() -> None:
    assert set(CHECKS) == {check for check, *_ in BAD} == {check for check, _ in GOOD}
