"""What SLURM tells of its cluster: what a site profile and its users have to know, asked once."""

import os
import re
import subprocess
from dataclasses import dataclass

from configs.errors import UserError
from configs.scalars import format_time, parse_time
from slurm.site import Site


@dataclass(frozen=True)
class Partition:
    """One partition, of nodes that are alike or as small as its smallest; sinfo's `+` after a number is dropped."""

    name: str
    default: bool
    nodes: int
    cpus: int  # per node
    gpus: int  # per node
    max_time: int | None  # seconds; None: no limit


@dataclass(frozen=True)
class Survey:
    """What this cluster is."""

    version: str
    settings: dict[str, str]  # of `scontrol show config`
    partitions: list[Partition]

    @property
    def accounting(self) -> bool:
        return "none" not in self.settings.get("AccountingStorageType", "none")

    @property
    def requeue_is_default(self) -> bool:
        return self.settings.get("JobRequeue", "1") == "1"

    @property
    def kill_wait(self) -> int:
        """Seconds from SIGTERM to SIGKILL after a bare scancel."""
        found = re.match(r"\d+", self.settings.get("KillWait", "30"))
        return int(found[0]) if found else 30

    def partition(self, name: str | None) -> Partition:
        """The one of that name; without a name the default, unless it has no GPUs and another one has."""
        if name is not None:
            named = [partition for partition in self.partitions if partition.name in name.split(",")]
            if not named:
                known = ", ".join(partition.name for partition in self.partitions)
                raise UserError(f"partition: there is no '{name}'; this cluster has {known}")
            return named[0]
        first = sorted(self.partitions, key=lambda partition: (not partition.gpus, not partition.default))
        return first[0]

    def profile(self) -> Site:
        """The site profile that follows, to be corrected by whoever knows better."""
        chosen = self.partition(None)
        tres = "tres" in self.settings.get("SelectType", "")
        wanted = {
            "partition": None if chosen.default else chosen.name,
            "gpus": "none" if not chosen.gpus else "gpus-per-node" if tres else "gres",
            "cpus_per_rank": max(1, chosen.cpus // (chosen.gpus or chosen.cpus)),
            "max_time": format_time(chosen.max_time) if chosen.max_time else None,
        }
        return Site.model_validate(wanted)


def survey() -> Survey:
    """Raises UserError where no cluster answers on this machine."""
    try:
        version = _asked("sinfo", "--version").split()[-1]
        config = _asked("scontrol", "show", "config")
        rows = _asked("sinfo", "--noheader", "--exact", "--format=%P|%D|%c|%G|%l").splitlines()
    except (FileNotFoundError, subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        said = getattr(error, "stderr", None) or str(error)
        raise UserError(f"no SLURM cluster answers on this machine ({said.strip()}); ask on a login node") from None
    settings = dict(re.findall(r"^(\w+)\s*= (.*?)\s*$", config, re.M))
    return Survey(version, settings, _partitions(rows))


def _partitions(rows: list[str]) -> list[Partition]:
    """sinfo has a row for each kind of node in a partition; the smallest kind says what every job may count on."""
    found: dict[str, Partition] = {}
    for row in rows:
        name, nodes, cpus, gres, limit = row.split("|")
        gpus = sum(int(count) for count in re.findall(r"gpu(?::[^:,(]+)?:(\d+)", gres))
        new = Partition(name.rstrip("*"), name.endswith("*"), int(nodes), int(cpus.rstrip("+")), gpus, _seconds(limit))
        old = found.get(new.name)
        if old is not None:
            cpus_of, gpus_of = min(old.cpus, new.cpus), min(old.gpus, new.gpus)
            new = Partition(new.name, new.default, old.nodes + new.nodes, cpus_of, gpus_of, new.max_time)
        found[new.name] = new
    return list(found.values())


def _seconds(limit: str) -> int | None:
    """`1-00:00:00`, `30:00` or `infinite`, as sinfo writes them."""
    return None if limit == "infinite" else parse_time(limit if limit.count(":") > 1 else f"00:{limit}")


def _asked(*command: str) -> str:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("SINFO_")}
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60, env=environment)
    return done.stdout
