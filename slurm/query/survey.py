"""What SLURM tells of its cluster: what a site profile and its users have to know, asked once."""

import re
from dataclasses import dataclass

from configs.errors import UserError
from configs.scalars import format_time
from slurm.query.ask import query_slurm
from slurm.query.partitions import PartitionRules, query_partition_rules
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
    rules: list[PartitionRules]

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


def survey_cluster() -> Survey:
    """Raises as `ask` does."""
    version = query_slurm("sinfo", "--version").split()[-1]
    settings = read_settings()
    rows = query_slurm("sinfo", "--noheader", "--exact", "--format=%P|%D|%c|%G").splitlines()
    rules = query_partition_rules()
    return Survey(version, settings, _partitions(rows, rules), rules)


def read_settings() -> dict[str, str]:
    """slurm.conf as the controller has it. Raises as `ask` does."""
    return dict(re.findall(r"^(\w+)\s*= (.*?)\s*$", query_slurm("scontrol", "show", "config"), re.M))


def _partitions(rows: list[str], rules: list[PartitionRules]) -> list[Partition]:
    """sinfo has a row for each kind of node in a partition; the smallest kind says what every job may count on."""
    found: dict[str, Partition] = {}
    limits = {one.name: one.max_time for one in rules}
    for row in rows:
        name, nodes, cpus, gres = row.split("|")
        gpus = sum(int(count) for count in re.findall(r"gpu(?::[^:,(]+)?:(\d+)", gres))
        limit = limits.get(name.rstrip("*"))
        new = Partition(name.rstrip("*"), name.endswith("*"), int(nodes), int(cpus.rstrip("+")), gpus, limit)
        old = found.get(new.name)
        if old is not None:
            cpus_of, gpus_of = min(old.cpus, new.cpus), min(old.gpus, new.gpus)
            new = Partition(new.name, new.default, old.nodes + new.nodes, cpus_of, gpus_of, new.max_time)
        found[new.name] = new
    return list(found.values())
