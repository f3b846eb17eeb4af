"""The arrows of the house: between the packages, and inside each; only train knows torch; the command does without it.

configs ← store ← slurm ← launcher, and store ← train.
"""

import subprocess
import sys

import pytest

from tests.sources import PACKAGES, ROOT, Source, import_graph, imports_of, read_sources

MAY_IMPORT = {
    "configs": set[str](),
    "store": {"configs"},
    "slurm": {"configs", "store"},
    "launcher": {"configs", "store", "slurm"},
    "train": {"configs", "store"},
}
# The wings and modules of each package, the ground first: one may import what stands before it in its line, and
# nothing that stands behind it. A new one is put where it belongs; docs/design.md says what each is for.
ORDER = {
    "configs": "errors scalars schema changes objective pipelines known_models model_file model_folder optimizers "
    "reading solve",
    "store": "files run dataset checkpoint encodings",
    "slurm": "site query recovery job backend lab",
    "launcher": "format torch_part run_lock same_run hub data local backend plan monitor submit manage doctor demo cli",
    "train": "private_folder process_group progress stop_signal context engines data models inspection encode "
    "objective step step_totals resilience checkpoint reporting loop attempt demo __main__",
}
HEAVY = {"torch", "deepspeed", "diffusers", "transformers"}


def find_foreign_imports(sources: list[Source]) -> list[str]:
    """Imports of a package by one that may not know it."""
    problems = []
    for source in sources:
        package = source.module.partition(".")[0]
        imported = {name.partition(".")[0] for name in imports_of(source)}
        for other in sorted(imported & set(MAY_IMPORT) - MAY_IMPORT[package] - {package}):
            allowed = ", ".join(sorted(MAY_IMPORT[package])) or "no other package"
            problems.append(f"{source.file} imports {other}, and {package} may import {allowed}")
    return problems


def find_imports_against_the_order(sources: list[Source], order: dict[str, str]) -> list[str]:
    """Imports inside a package that go from a wing to one that stands behind it."""
    problems = []
    for module, imported in import_graph(sources).items():
        package, _, rest = module.partition(".")
        wing = rest.partition(".")[0]
        places = {name: place for place, name in enumerate(order[package].split())}
        wings = {name: name.split(".")[1] for name in imported if name.startswith(f"{package}.")}
        for name, other in sorted(wings.items()):
            if places.get(other, 0) > places.get(wing, len(places)):
                problems.append(f"{module} imports {name}, and in {package} {wing} stands before {other}")
    return problems


def find_wings(sources: list[Source]) -> dict[str, set[str]]:
    """Package → its wings and modules."""
    wings: dict[str, set[str]] = {package: set() for package in PACKAGES}
    for source in sources:
        package, _, rest = source.module.partition(".")
        wings[package] |= {rest.partition(".")[0]} - {""}
    return wings


def test_packages_import_along_the_arrows() -> None:
    assert find_foreign_imports(read_sources()) == []


def test_wings_import_along_their_order() -> None:
    problems = find_imports_against_the_order(read_sources(), ORDER)
    assert not problems, "\n".join(problems)


def find_misplaced_wings(sources: list[Source], order: dict[str, str]) -> list[str]:
    """What the order does not name once, and what it names that is not there."""
    problems = []
    for package, wings in find_wings(sources).items():
        named = order[package].split()
        problems += [f"{package}.{wing} has no place in ORDER" for wing in sorted(wings - set(named))]
        problems += [f"{package}.{wing} has a place in ORDER and is not there" for wing in named if wing not in wings]
        problems += [f"{package}.{wing} has two places in ORDER" for wing in sorted(wings) if named.count(wing) > 1]
    return problems


def test_every_wing_has_its_place() -> None:
    problems = find_misplaced_wings(read_sources(), ORDER)
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize(
    ("file", "text", "problem"),
    [
        ("configs/a.py", "import store.run", "configs/a.py imports store, and configs may import no other package"),
        ("launcher/a.py", "def f():\n    from train import loop", "launcher may import configs, slurm, store"),
        ("train/a.py", "from launcher.cli.main import main", "train/a.py imports launcher"),
    ],
)
def test_an_import_against_the_arrows_is_found(file: str, text: str, problem: str) -> None:
    [line] = find_foreign_imports([Source(file, text)])
    assert problem in line


def test_an_import_against_the_order_is_found() -> None:
    order = {"store": "run checkpoint"}
    ground, above = (
        Source("store/run/run_dir.py", ""),
        Source("store/checkpoint/manifest.py", "import store.run.run_dir"),
    )
    assert find_imports_against_the_order([ground, above], order) == []
    upwards = Source("store/run/run_dir.py", "def f():\n    from store.checkpoint.manifest import Manifest")
    found = find_imports_against_the_order([upwards, Source("store/checkpoint/manifest.py", "")], order)
    assert found == ["store.run.run_dir imports store.checkpoint.manifest, and in store run stands before checkpoint"]


def test_a_wing_without_its_one_place_is_found() -> None:
    order = dict.fromkeys(PACKAGES, "") | {"store": "run run gone", "train": "loop"}
    sources = [Source("store/run/end.py", ""), Source("store/new.py", ""), Source("train/loop.py", "")]
    assert find_misplaced_wings(sources, order) == [
        "store.new has no place in ORDER",
        "store.gone has a place in ORDER and is not there",
        "store.run has two places in ORDER",
    ]


@pytest.mark.parametrize("package", ["configs", "store", "slurm", "launcher"])
def test_only_train_imports_torch(package: str) -> None:
    for source in read_sources():
        if source.module.partition(".")[0] == package:
            heavy = {name.partition(".")[0] for name in imports_of(source)} & HEAVY
            assert not heavy, f"{source.file} imports {heavy}"


@pytest.mark.parametrize("words", [["--help"], ["plan", "laptop.yaml", "--samples", "100", "model=me/mine"]])
def test_the_command_starts_without_torch(words: list[str]) -> None:
    code = (
        "import sys; from launcher.cli.main import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        f"print('loaded:', *sorted({HEAVY!r} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, *words],
        capture_output=True,
        text=True,
        cwd=ROOT / "configs/recipes",
        timeout=60,
    )
    assert done.stderr.strip() == "loaded:"
