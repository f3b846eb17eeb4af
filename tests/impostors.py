"""Other people's `configs`, `train` and the rest: where one is imported for ours, the process ends and says so."""

from pathlib import Path

NOT_OURS = "not ours"
_CODE = f"raise SystemExit({NOT_OURS!r})\n"


def write_impostors(folder: Path) -> Path:
    """A folder of packages and modules that are named as ours are, for PYTHONPATH or to work in."""
    for package in ("configs", "store", "launcher"):
        (folder / package).mkdir(parents=True)
        (folder / package / "__init__.py").write_text(_CODE)
    for module in ("slurm", "train"):
        (folder / f"{module}.py").write_text(_CODE)
    return folder
