"""The seam between people's commands and whoever starts runs."""

import ast
from pathlib import Path

import launcher
from launcher.backend import BACKENDS

ROOT = Path(launcher.__file__).parent
# what stands behind the seam, and the two commands that are about SLURM itself: doctor and lab
KNOWS_SLURM = {"backend.py", "doctor.py", "cli/main.py"}


def test_the_launcher_knows_slurm_in_three_files() -> None:
    found = set()
    for file in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            modules = [node.module] if isinstance(node, ast.ImportFrom) else []
            modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if any(module and module.split(".")[0] == "slurm" for module in modules):
                found.add(file.relative_to(ROOT).as_posix())
    assert found == KNOWS_SLURM


def test_a_backend_s_name_is_its_key() -> None:
    assert {name: make().name for name, make in BACKENDS.items()} == {"local": "local", "slurm": "slurm"}
