"""The programs a lab needs: installed from Debian where that may be done, else named exactly."""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from configs.errors import LockstepError, UserError

_BASE = {
    "munged": "munge",
    "slurmctld": "slurmctld",
    "slurmd": "slurmd",
    "srun": "slurm-client",
    "ip": "iproute2",
}
_ACCOUNTING = {"slurmdbd": "slurmdbd", "mariadbd": "mariadb-server-core"}
_POLICY = Path("/usr/sbin/policy-rc.d")


def make_search_path() -> str:
    """Daemons live in folders that are not on everybody's PATH."""
    return os.pathsep.join([os.environ.get("PATH", "/usr/bin:/bin"), "/usr/local/sbin", "/usr/sbin", "/sbin"])


def ensure_packages(accounting: bool) -> None:
    """Install what is missing; raises UserError, with the command to give, where that cannot be done from here."""
    needed = _BASE | (_ACCOUNTING if accounting else {})
    missing = {program: package for program, package in needed.items() if not _found(program)}
    if not missing:
        return
    if not shutil.which("apt-get"):
        raise UserError(f"the lab needs {', '.join(missing)}, which are not on this machine; install SLURM and munge")
    install = ["apt-get", "install", "-y", "--no-install-recommends", *missing.values()]
    if os.geteuid() != 0:
        raise UserError(f"the lab needs {', '.join(missing)}; as root: {' '.join(install)}")
    with _no_service_starts():
        if _apt(install).returncode != 0:
            _apt(["apt-get", "update"])  # the list of packages may be old, or not there yet
            if (done := _apt(install)).returncode != 0:
                raise LockstepError(f"{' '.join(install)} failed:\n{done.stdout.strip()[-800:]}")


def _found(program: str) -> bool:
    return shutil.which(program, path=make_search_path()) is not None


def _apt(command: list[str]) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    return subprocess.run(
        [*command, "--quiet", "-o", "DPkg::Lock::Timeout=120"],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


@contextlib.contextmanager
def _no_service_starts() -> Iterator[None]:
    """Debian asks policy-rc.d before it starts a new service. A machine that has its own rule keeps it."""
    try:
        with open(os.open(_POLICY, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o755), "w") as file:
            file.write("#!/bin/sh\nexit 101\n")
    except FileExistsError:
        yield
        return
    try:
        yield
    finally:
        _POLICY.unlink()
