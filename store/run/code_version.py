"""Which code a run is made of: its version, a digest of its sources, and its commit where it lies in a git clone."""

import hashlib
import subprocess
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

PACKAGES = ("configs", "store", "slurm", "launcher", "train")
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class CodeVersion:
    """Equal digests: the same code, committed or not. `diff` is what was changed since the commit, as git has it."""

    version: str
    digest: str
    commit: str | None
    diff: str


def read_code_version() -> CodeVersion:
    return CodeVersion(version("lockstep"), _digest(), *_git())


def _digest() -> str:
    """Of every file of the five packages, by its path and content."""
    found = hashlib.sha256()
    for path in sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        found.update(f"{path.relative_to(ROOT).as_posix()}\0".encode())
        found.update(hashlib.sha256(path.read_bytes()).digest())
    return found.hexdigest()


def _git() -> tuple[str | None, str]:
    """Commit and diff; none where this is not a clone of its own, such as an installation inside somebody's project."""
    top = _asked("rev-parse", "--show-toplevel", "HEAD").split("\n")
    if Path(top[0]) != ROOT:
        return None, ""
    return top[1], _asked("diff", "HEAD", "--", *PACKAGES)


def _asked(*words: str) -> str:
    """What git answers; nothing where there is no git, or it does not trust the folder's owner."""
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=False, timeout=60)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.rstrip("\n") if done.returncode == 0 else ""
