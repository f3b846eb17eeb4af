"""Which code a run is made of: its version, a digest of its sources, and its commit where it lies in a git clone."""

import hashlib
import subprocess
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

PACKAGES = ("configs", "store", "slurm", "launcher", "train")
ENTRY = "lockstep.py"  # in a clone beside the packages, in a wheel beside their folder
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class CodeVersion:
    """Equal digests: the same code, committed or not. `diff` is what was changed since the commit, as git has it."""

    version: str
    digest: str
    commit: str | None
    diff: str


def read_code_version() -> CodeVersion:
    """Of the code that runs: reads every source file, and asks git twice."""
    return CodeVersion(version("lockstep"), _digest(), *_git())


def _digest() -> str:
    """Of lockstep.py and every file of the five packages, by its path and content: of a wheel as of its clone."""
    modules = (path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
    files = {path.relative_to(ROOT).as_posix(): path for path in modules}
    files[ENTRY] = ROOT / ENTRY if (ROOT / ENTRY).is_file() else ROOT.parent / ENTRY
    digest = hashlib.sha256()
    for name, path in sorted(files.items()):
        digest.update(f"{name}\0".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _git() -> tuple[str | None, str]:
    """Commit and diff; none where this is not a clone of its own, such as an installation inside somebody's project."""
    top = _ask_git("rev-parse", "--show-toplevel", "HEAD").split("\n")
    if Path(top[0]) != ROOT:
        return None, ""
    return top[1], _ask_git("diff", "HEAD", "--", ENTRY, *PACKAGES)


def _ask_git(*arguments: str) -> str:
    """What git answers; nothing where there is no git, or it does not trust the folder's owner."""
    try:
        done = subprocess.run(
            ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False, timeout=60
        )
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.rstrip("\n") if done.returncode == 0 else ""
