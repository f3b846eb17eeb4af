"""Why an attempt ended without an end record: told from what its ranks and SLURM wrote down, never guessed.

In order: what a rank says of itself, what srun says of a rank that said nothing, who fell silent first, who is missing.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from store.run.attempt_plan import AttemptPlan
from store.run.run_dir import Attempt

CauseKind = Literal[
    "out of memory",
    "disk",
    "data",
    "program",
    "hung",
    "killed",
    "peer lost",
    "node lost",
    "preempted",
    "time limit",
    "superseded",
    "unknown",
]
SILENCE = 3.0  # seconds between two nodes' last signs of life that tell a lost one from one that was stopped with all
_SAID = 200  # characters of an error's own words
_ERRORS: list[tuple[CauseKind, str]] = [
    ("superseded", r"^Superseded\b"),
    ("hung", r"^Stuck\b"),
    ("disk", r"No space left on device|Disk quota exceeded|Read-only file system|Input/output error"),
    ("out of memory", r"[Oo]ut of memory|^MemoryError|[Cc]an't allocate memory|Cannot allocate memory"),
]
_DEVICE = re.compile(r"NoDevice|CUDA error|CUDNN_STATUS|uncorrectable|NCCL.*(unhandled|system) error|Xid")
_TAKEN: list[tuple[CauseKind, str, str]] = [  # SLURM's own words, in the job's or srun's output
    ("node lost", r"Node failure on (\S+)", "node {} was lost"),
    ("preempted", r"CANCELLED AT \S+ DUE TO PREEMPTION", "SLURM gave its nodes to another job before it could save"),
    ("time limit", r"CANCELLED AT \S+ DUE TO TIME LIMIT", "its time limit came before it could save"),
]
_DIED = re.compile(r"srun: error: (\S+): tasks? (\d+)[\d,-]*: (?!Exited with exit code)(.*)")
_TERMINATED = re.compile(r"Terminating StepId|forcing job termination")  # from here on srun itself kills
_OOM_KILL = re.compile(r"oom-kill|Out Of Memory")


@dataclass(frozen=True)
class Cause:
    """What came first; the other ranks that failed of it are victims."""

    kind: CauseKind
    sentence: str
    rank: int | None = None
    host: str | None = None
    secondary_failures: tuple[int, ...] = ()
    is_user_error: bool = False  # the rank says that the config or the data are wrong, which no repetition cures

    @property
    def is_infrastructure(self) -> bool:
        """The machine was taken away: nothing that the run did."""
        return self.kind in ("node lost", "preempted", "time limit", "superseded")

    @property
    def suspects_node(self) -> bool:
        """Whether it may be the node's fault, so that another one might do better."""
        return self.kind in ("node lost", "killed") or bool(_DEVICE.search(self.sentence))


def find_cause(attempt: Attempt) -> Cause:
    """For an attempt that runs no more and has no end record."""
    reports, beats = attempt.failures(), attempt.heartbeats()
    own = [report for report in reports if not report["peer_lost"]]
    failed = [int(report["rank"]) for report in reports]
    if own:
        return _reported(own[0], beats, failed)
    said = _srun_output(attempt)
    return _told_by_slurm(said, beats, failed) or _told_by_silence(attempt, beats, failed) or _unknown(failed)


def _reported(report: dict[str, Any], beats: dict[int, dict[str, Any]], failed: list[int]) -> Cause:
    """A rank says what it failed of."""
    message = (str(report["message"]).strip().splitlines() or [""])[0][:_SAID]
    said = f"{report['error']}: {message}" if message else str(report["error"])
    rank, host, mistake = int(report["rank"]), str(report["host"]), report["exit_code"] == 2
    fallback: CauseKind = "data" if mistake else "program"
    kind = next(
        (kind for kind, signs in _ERRORS if re.search(signs, f"{report['error']}: {report['message']}")), fallback
    )
    words = {"out of memory": "ran out of memory", "disk": "could not read or write", "data": "stopped"}.get(
        kind, "failed"
    )
    step = _when(beats.get(rank))
    text = message if kind in ("data", "hung", "superseded") else said
    return Cause(kind, f"rank {rank} on {host} {words}{step}: {text}", rank, host, _others(failed, rank), mistake)


def _told_by_slurm(said: str, beats: dict[int, dict[str, Any]], failed: list[int]) -> Cause | None:
    """What srun and slurmstepd say of tasks and nodes, before they kill the rest."""
    end = _TERMINATED.search(said)
    died = _DIED.search(said, 0, end.start() if end else len(said))
    taken = [(match.start(), kind, match, text) for kind, signs, text in _TAKEN if (match := re.search(signs, said))]
    if taken and (died is None or min(taken, key=lambda one: one[0])[0] < died.start()):
        _, kind, match, text = min(taken, key=lambda one: one[0])
        host = match[1] if match.groups() else None
        return Cause(kind, text.format(host), host=host, secondary_failures=tuple(failed))
    if died is None:
        return None
    host, rank, how = died[1], int(died[2]), died[3].strip()
    step = _when(beats.get(rank))
    victims = _others(failed, rank)
    if _OOM_KILL.search(said) or how.startswith("Out Of Memory"):
        return Cause("out of memory", f"rank {rank} on {host} was killed{step}: no memory left", rank, host, victims)
    if how.startswith("Killed"):
        return Cause("killed", f"rank {rank} on {host} was killed from outside{step}", rank, host, victims)
    return Cause("program", f"rank {rank} on {host} died{step}: {how}", rank, host, victims)


def _told_by_silence(attempt: Attempt, beats: dict[int, dict[str, Any]], failed: list[int]) -> Cause | None:
    """A node whose ranks all fell silent while those of the others went on; or a rank that left no report."""
    last: dict[str, float] = {}
    for beat in beats.values():
        last[beat["host"]] = max(last.get(beat["host"], 0.0), beat["time"])
    by_silence = sorted(last.items(), key=lambda item: item[1])
    if not failed and len(last) > 1 and by_silence[1][1] - by_silence[0][1] > SILENCE:
        return Cause("node lost", f"node {by_silence[0][0]} was lost", host=by_silence[0][0])
    silent = [rank for rank in range(AttemptPlan.read(attempt).batch_plan.shape.world_size) if rank not in failed]
    if failed and len(silent) == 1 and silent[0] in beats:
        rank, beat = silent[0], beats[silent[0]]
        what = f"rank {rank} on {beat['host']} died without a word in step {beat['step'] + 1}"
        return Cause("killed", f"{what}: killed from outside, or out of memory", rank, beat["host"], tuple(failed))
    return None


def _unknown(failed: list[int]) -> Cause:
    if failed:
        return Cause(
            "peer lost", "ranks lost a peer, and nothing tells which went first", secondary_failures=tuple(failed)
        )
    return Cause("unknown", "lost, cause unknown")


def _others(failed: list[int], rank: int) -> tuple[int, ...]:
    return tuple(other for other in failed if other != rank)


def _srun_output(attempt: Attempt) -> str:
    """srun's words, and this attempt's part of the job's output."""
    said = attempt.launcher_log.read_text(errors="replace") if attempt.launcher_log.is_file() else ""
    if not attempt.nodes.is_file():
        return said
    where = json.loads(attempt.nodes.read_text())["output"]
    following = Attempt(attempt.path.with_name(f"{attempt.number + 1:04d}")).nodes
    end = json.loads(following.read_text())["output"] if following.is_file() else {}
    if not where or not Path(where["path"]).is_file():
        return said
    with open(where["path"], "rb") as file:
        file.seek(where["size"])
        same = end and end["path"] == where["path"]
        return said + file.read(end["size"] - where["size"] if same else -1).decode(errors="replace")


def _when(beat: dict[str, Any] | None) -> str:
    """What the rank was at, by its last sign of life."""
    if beat is None:
        return " before its first sign of life"
    return " while loading" if beat["doing"] == "loading" else f" in step {beat['step'] + 1}"
