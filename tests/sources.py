"""The sources of the five packages as the tests of the house read them: parsed, with what each module imports."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("configs", "store", "slurm", "launcher", "train")


@dataclass(frozen=True)
class Source:
    """One module. `file` is relative to the repository."""

    file: str
    text: str

    @property
    def module(self) -> str:
        """Its dotted name; a package's own is that of its folder."""
        return self.file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)


@cache
def read_sources() -> list[Source]:
    """Every module of the five packages."""
    files = sorted(file for package in PACKAGES for file in (ROOT / package).rglob("*.py"))
    return [Source(str(file.relative_to(ROOT)), file.read_text(encoding="utf-8")) for file in files]


def imports_of(source: Source) -> set[str]:
    """What `source` imports, at its top or in a function, as dotted names: `a.b` for `import a.b`, `a.b.c` for
    `from a.b import c`, be that a module or a value. What only a type checker imports is left out."""
    imported = set()
    for node in _walk_at_run_time(source.tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{source.file}:{node.lineno}: a relative import hides the arrows"
            imported |= {f"{node.module}.{alias.name}" for alias in node.names}
    return imported


def _walk_at_run_time(node: ast.AST) -> Iterator[ast.AST]:
    """Every node below, but for the bodies of `if TYPE_CHECKING:`."""
    for child in ast.iter_child_nodes(node):
        yield child
        if isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            for other in child.orelse:
                yield other
                yield from _walk_at_run_time(other)
        else:
            yield from _walk_at_run_time(child)


def import_graph(sources: list[Source]) -> dict[str, set[str]]:
    """Module → the modules of `sources` that it imports; a value's is the module that it is imported from."""
    modules = {source.module for source in sources}
    graph: dict[str, set[str]] = {}
    for source in sources:
        imported = imports_of(source)
        named = {name if name in modules else name.rpartition(".")[0] for name in imported}
        graph[source.module] = named & modules
    return graph
