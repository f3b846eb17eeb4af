"""The house: configs ← store ← slurm ← launcher, store ← train; only train knows torch; the command does without it."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAY_IMPORT = {
    "configs": set[str](),
    "store": {"configs"},
    "slurm": {"configs", "store"},
    "launcher": {"configs", "store", "slurm"},
    "train": {"configs", "store"},
}
HEAVY = {"torch", "deepspeed", "diffusers", "transformers"}


def imported(file: Path) -> set[str]:
    """The top-level names that `file` imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative imports hide the arrows"
            found.add((node.module or "").partition(".")[0])
    return found


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_packages_import_along_the_arrows(package: str) -> None:
    allowed = MAY_IMPORT[package] | {package}
    for file in (ROOT / package).rglob("*.py"):
        against = imported(file) & set(MAY_IMPORT) - allowed
        assert not against, f"{file.relative_to(ROOT)} imports {', '.join(against)}"


@pytest.mark.parametrize("package", ["configs", "store", "slurm", "launcher"])
def test_only_train_imports_torch(package: str) -> None:
    for file in (ROOT / package).rglob("*.py"):
        assert not imported(file) & HEAVY, f"{file.relative_to(ROOT)} imports {imported(file) & HEAVY}"


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
