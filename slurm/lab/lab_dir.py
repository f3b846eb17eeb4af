"""The lab's folder: one class names every path in it, and refuses one that cannot work."""

import os
from dataclasses import dataclass
from pathlib import Path

from configs.errors import UserError

_SOCKET_LIMIT = 107  # bytes of path that a unix socket may have on Linux
_LONGEST_SOCKET = "/spool/node99/node99_9999999.4294967291"  # slurmd makes one per step


@dataclass(frozen=True)
class LabDir:
    """Everything a lab writes. Configuration, state and logs are made anew by each `up`."""

    path: Path

    def check_path(self) -> None:
        """A mistake told now is better than a daemon that cannot open its socket."""
        too_long = len(os.fsencode(self.path)) + len(_LONGEST_SOCKET) - _SOCKET_LIMIT
        if too_long > 0:
            raise UserError(
                f"{self.path}: {too_long} characters too long for the lab, because paths of unix sockets are limited; "
                "name a shorter folder with LOCKSTEP_LAB"
            )
        if self.path.is_dir() and any(self.path.iterdir()) and not self.settings.exists():
            raise UserError(f"{self.path}: is not empty and no lab; name another folder with LOCKSTEP_LAB")

    @property
    def settings(self) -> Path:
        return self.path / "lab.json"

    @property
    def lock(self) -> Path:
        return self.path / "lock"

    @property
    def etc(self) -> Path:
        return self.path / "etc"

    @property
    def slurm_conf(self) -> Path:
        return self.etc / "slurm.conf"

    @property
    def munge_key(self) -> Path:
        return self.etc / "munge.key"

    @property
    def run(self) -> Path:
        return self.path / "run"

    @property
    def control(self) -> Path:
        return self.run / "control.sock"

    @property
    def munge_socket(self) -> Path:
        return self.run / "munge.sock"

    @property
    def database_socket(self) -> Path:
        return self.run / "database.sock"

    @property
    def database(self) -> Path:
        return self.path / "database"

    @property
    def state(self) -> Path:
        return self.path / "state"

    @property
    def spool(self) -> Path:
        return self.path / "spool"

    def log(self, daemon: str) -> Path:
        return self.path / "log" / f"{daemon}.log"

    def output(self, daemon: str) -> Path:
        """What it prints: of SLURM's daemons the same as their log, without times, and all before there is a log."""
        return self.path / "log" / f"{daemon}.out"

    def made_anew(self) -> tuple[Path, ...]:
        return self.etc, self.run, self.database, self.state, self.spool, self.path / "log"
