"""What SLURM lets a partition's jobs do and does to them: the longest time it starts, and how it preempts."""

import re
from contextlib import suppress
from dataclasses import dataclass

from configs.errors import LockstepError, UserError
from configs.scalars import format_time, parse_time
from slurm.query.ask import query_slurm
from slurm.site import Site


@dataclass(frozen=True)
class PartitionRules:
    """One partition's, of `scontrol show partition`."""

    name: str
    default: bool
    max_time: int | None  # seconds; None: no limit
    preempt_mode: str  # CANCEL, REQUEUE, OFF, …
    grace_time: int  # seconds from a preempted job's SIGTERM on
    tier: int  # jobs of a higher one preempt those of a lower one


def query_partition_rules() -> list[PartitionRules]:
    """Of every partition. Raises as `query_slurm` does."""
    lines = query_slurm("scontrol", "--all", "--oneliner", "show", "partition").splitlines()
    partitions = [dict(re.findall(r"(\w+)=(\S*)", line)) for line in lines]
    return [_parse_rules(fields) for fields in partitions if "PartitionName" in fields]


def _parse_rules(fields: dict[str, str]) -> PartitionRules:
    max_time = None
    with suppress(ValueError):  # UNLIMITED
        max_time = parse_time(fields.get("MaxTime"))
    return PartitionRules(
        fields["PartitionName"],
        fields.get("Default") == "YES",
        max_time,
        fields.get("PreemptMode", "OFF"),
        _parse_number(fields, "GraceTime"),
        _parse_number(fields, "PriorityTier"),
    )


def _parse_number(fields: dict[str, str], key: str) -> int:
    """1 where it is not told: nobody is warned of what may not be so."""
    text = fields.get(key, "")
    return int(text) if text.isdecimal() else 1


def check_time_limit(rules: list[PartitionRules], limit: int | None, site: Site) -> None:
    """Raises UserError where no partition of the site ever starts a job of `limit` seconds: SLURM, as most sites have
    it, queues it all the same, and says when it would start."""
    partitions = _partitions_of(rules, site)
    longest = max((partition.max_time or float("inf") for partition in partitions), default=float("inf"))
    if limit is None or -(-limit // 60) * 60 <= longest or _lifts_limits(site.qos):
        return
    names = " and ".join(partition.name for partition in partitions)
    most = format_time(int(longest))
    raise UserError(
        f"cluster.time: {format_time(limit)} is more than the {most} that partition {names} allows, so the job would "
        f"wait for ever; write at most {most}, or name another partition in the site profile"
    )


def warn_of_cancelling(rules: list[PartitionRules], preempt_type: str, site: Site) -> str | None:
    """That SLURM ends the site's jobs for those of other partitions, for good and before they could requeue; if so."""
    if preempt_type != "preempt/partition_prio":
        return None
    highest = max((partition.tier for partition in rules), default=0)
    for partition in _partitions_of(rules, site):
        cancels = "CANCEL" in partition.preempt_mode.split(",") and not partition.grace_time
        if cancels and partition.tier < highest:
            return (
                f"partition {partition.name} preempts by cancelling, without grace time: SLURM does not queue such a "
                "run again once it is preempted; earlier checkpoints are kept, and lockstep submit resumes from there"
            )
    return None


def _partitions_of(rules: list[PartitionRules], site: Site) -> list[PartitionRules]:
    """Those that a job of the site may start in."""
    if site.partition is None:
        return [partition for partition in rules if partition.default]
    return [partition for partition in rules if partition.name in site.partition.split(",")]


def _lifts_limits(qos: str | None) -> bool:
    """Whether this quality of service lets jobs run longer than their partition has it."""
    if qos is None:
        return False
    words = ["sacctmgr", "--noheader", "--parsable2", "show", "qos", "where", f"name={qos}", "format=flags"]
    try:
        return "PartitionTimeLimit" in query_slurm(*words)
    except LockstepError:  # without accounting SLURM knows no quality of service, and the partition's limit stands
        return False
