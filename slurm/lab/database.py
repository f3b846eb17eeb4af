"""Accounting: MariaDB and slurmdbd, as small and as quick to start as they go. What they store ends with the lab."""

import getpass
import socket
from pathlib import Path

from slurm.lab.daemons import Daemons
from slurm.lab.lab_dir import LabDir
from slurm.lab.settings import Settings

# All there is in MariaDB's own tables; mariadb-install-db does the same, but is in a package of 30 MB.
_SYSTEM_TABLES = [
    Path("/usr/share/mysql") / name for name in ("mysql_system_tables.sql", "mysql_system_tables_data.sql")
]
_SMALL = (
    "--innodb-log-file-size=8M",
    "--innodb-buffer-pool-size=64M",
    "--innodb-flush-log-at-trx-commit=0",
    "--performance-schema=OFF",
    "--aria-pagecache-buffer-size=8M",
    "--key-buffer-size=1M",
    "--table-open-cache=200",
    "--max-connections=20",
)


def start_accounting(daemons: Daemons, lab: LabDir, settings: Settings) -> None:
    """Until slurmdbd takes connections: slurmctld does not start without it."""
    first_words = lab.etc / "database.sql"
    tables = "".join(path.read_text() for path in _SYSTEM_TABLES)
    first_words.write_text(f"create database if not exists mysql;\nuse mysql;\n{tables}")
    server = ["mariadbd", "--no-defaults", f"--datadir={lab.database}", f"--user={getpass.getuser()}", *_SMALL]
    server += ["--skip-networking", "--skip-grant-tables", f"--socket={lab.database_socket}"]
    server += [f"--pid-file={lab.run}/mariadbd.pid"]
    daemons.run_once("mariadbd", [*server, "--bootstrap"], first_words)
    daemons.start("mariadbd", server)
    daemons.wait("MariaDB", lab.database_socket.exists, ["mariadbd"])
    daemons.start("slurmdbd", ["slurmdbd", "-D"], MYSQL_UNIX_PORT=str(lab.database_socket))
    address = (settings.controller_address, settings.database_port)
    daemons.wait("slurmdbd", lambda: _listens(address), ["slurmdbd", "mariadbd", "munged"])


def _listens(address: tuple[str, int]) -> bool:
    try:
        socket.create_connection(address, timeout=1).close()
    except OSError:
        return False
    return True
