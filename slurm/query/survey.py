"""What SLURM tells of its cluster: what a site profile and its users have to know, asked once."""

import re
from dataclasses import dataclass, replace

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
    def has_accounting(self) -> bool:
        return "none" not in self.settings.get("AccountingStorageType", "none")

    @property
    def kill_wait_seconds(self) -> int:
        """From SIGTERM to SIGKILL after a bare scancel."""
        number = re.match(r"\d+", self.settings.get("KillWait", "30"))
        return int(number[0]) if number else 30

    def find_partition(self, name: str | None) -> Partition:
        """The one of that name; without a name the default, unless it has no GPUs and another one has.

        Raises UserError where there is none of that name.
        """
        if name is None:
            return min(self.partitions, key=lambda partition: (not partition.gpus, not partition.default))
        named = [partition for partition in self.partitions if partition.name in name.split(",")]
        if not named:
            known = ", ".join(partition.name for partition in self.partitions)
            raise UserError(f"partition: there is no '{name}'; this cluster has {known}")
        return named[0]

    def make_profile(self) -> Site:
        """The site profile that follows, to be corrected by whoever knows better."""
        partition = self.find_partition(None)
        selects_tres = "tres" in self.settings.get("SelectType", "")
        profile = {
            "partition": None if partition.default else partition.name,
            "gpus": "none" if not partition.gpus else "gpus-per-node" if selects_tres else "gres",
            "cpus_per_rank": max(1, partition.cpus // (partition.gpus or partition.cpus)),
            "max_time": format_time(partition.max_time) if partition.max_time else None,
        }
        return Site.model_validate(profile)


def survey_cluster() -> Survey:
    """Raises as `query_slurm` does."""
    version = query_slurm("sinfo", "--version").split()[-1]
    settings = read_settings()
    rows = query_slurm("sinfo", "--noheader", "--exact", "--format=%P|%D|%c|%G").splitlines()
    rules = query_partition_rules()
    return Survey(version, settings, _parse_partitions(rows, rules), rules)


def read_settings() -> dict[str, str]:
    """slurm.conf as the controller has it. Raises as `query_slurm` does."""
    return dict(re.findall(r"^(\w+)\s*= (.*?)\s*$", query_slurm("scontrol", "show", "config"), re.M))


def _parse_partitions(rows: list[str], rules: list[PartitionRules]) -> list[Partition]:
    """sinfo has a row for each kind of node in a partition; the smallest kind says what every job may count on."""
    partitions: dict[str, Partition] = {}
    limits = {rule.name: rule.max_time for rule in rules}
    for row in rows:
        partition = _parse_partition(row, limits)
        others = partitions.get(partition.name)
        if others is not None:
            partition = replace(
                partition,
                nodes=others.nodes + partition.nodes,
                cpus=min(others.cpus, partition.cpus),
                gpus=min(others.gpus, partition.gpus),
            )
        partitions[partition.name] = partition
    return list(partitions.values())


def _parse_partition(row: str, limits: dict[str, int | None]) -> Partition:
    """Of a row such as `gpu*|4|8+|gpu:a100:4(S:0-1)`: a star is the default's, with a plus some nodes have more."""
    name, nodes, cpus, gres = row.split("|")
    gpus = sum(int(count) for count in re.findall(r"gpu(?::[^:,(]+)?:(\d+)", gres))
    plain = name.rstrip("*")
    return Partition(plain, name.endswith("*"), int(nodes), int(cpus.rstrip("+")), gpus, limits.get(plain))
