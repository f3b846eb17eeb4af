"""Why an attempt ended without an end record: told from what its ranks and SLURM wrote down, never guessed.

In order: what a rank says of itself, what SLURM says of the machine, the last words in the log of a rank that said
nothing, what srun says of it, who fell silent first, who is missing.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from store.run.attempt_plan import AttemptPlan
from store.run.last_words import find_last_words
from store.run.liveness import choose_heartbeat_period
from store.run.records import Allocation, FailureReport, HeartbeatRecord, read_failures, read_heartbeats
from store.run.run_dir import Attempt

CauseKind = Literal[
    "out of memory",
    "disk",
    "data",
    "program",
    "hung",
    "unresponsive",
    "device",
    "killed",
    "peer lost",
    "node lost",
    "preempted",
    "time limit",
    "superseded",
    "unknown",
]
SILENCE = 3.0  # heartbeats between two nodes' last ones that tell a lost node from one that was stopped with all
_LONGEST = 200  # characters of an error's own words
_ERRORS: list[tuple[CauseKind, str]] = [
    ("superseded", r"^Superseded\b"),
    ("hung", r"^Stuck\b"),
    ("disk", r"No space left on device|Disk quota exceeded|Read-only file system|Input/output error"),
    ("out of memory", r"[Oo]ut of memory|^MemoryError|[Cc]an't allocate memory|Cannot allocate memory"),
    # CUDA's words for what no program does to a GPU (cudaGetErrorString), NVML's, the driver's, and NCCL's for a call
    # of CUDA's or of the system's that failed. An illegal access or a failed assertion on the GPU is the program's.
    (
        "device",
        r"^(NoDevice|CorruptReplica)\b|uncorrectable (ECC|NVLink) error|hardware (stack )?error"
        r"|CUDA error: unknown error|no CUDA-capable device|CUDA-capable device\S* (is/)?are busy or unavailable"
        r"|system not yet initialized|GPU is lost|GPU requires reset|fallen off the bus|\bXid\b"
        r"|unhandled (cuda|system) error",
    ),
]
_VERBS = {
    "out of memory": "ran out of memory",
    "disk": "could not read or write",
    "data": "stopped",
    "device": "failed on its GPU",
}
_INTERRUPTIONS: list[tuple[CauseKind, str, str]] = [  # SLURM's own words, in the job's or srun's output
    ("node lost", r"Node failure on (\S+)", "node {} was lost"),
    ("preempted", r"CANCELLED AT \S+ DUE TO PREEMPTION", "SLURM gave its nodes to another job before it could save"),
    ("time limit", r"CANCELLED AT \S+ DUE TO TIME LIMIT", "its time limit came before it could save"),
]
_DIED = re.compile(r"srun: error: (\S+): tasks? (\d+)[\d,-]*: (?!Exited with exit code)(.*)")
_TERMINATED = re.compile(r"Terminating StepId|forcing job termination")  # from here on srun itself kills
_BEFORE_STEPS = ("loading", "encoding", "verifying")  # how begins what a rank is doing before the first step
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
        return self.kind in ("node lost", "unresponsive", "preempted", "time limit", "superseded")

    @property
    def suspects_node(self) -> bool:
        """Whether it may be the node's fault, so that another one might do better."""
        return self.kind in ("node lost", "unresponsive", "killed", "device")


def find_cause(attempt: Attempt) -> Cause:
    """For an attempt that runs no more and has no end record."""
    reports, beats = read_failures(attempt), read_heartbeats(attempt)
    own = [report for report in reports if not report.peer_lost]
    failed = [report.rank for report in reports]
    if own:
        is_hang = classify_error(f"{own[0].error}: ") == "hung"
        return _found_to_hang(attempt, own[0], failed) if is_hang else _reported(own[0], beats, failed)
    told = _told_by_slurm(_srun_output(attempt), beats, failed)
    if told is None or told.kind == "program":  # srun knows that a rank aborted, and its log may know why
        told = _told_by_log(attempt, beats, failed) or told
    return told or _told_by_silence(attempt, beats, failed) or _unknown(failed)


def classify_error(error: str) -> CauseKind | None:
    """The kind that an error's own words tell: its class, a colon, its message."""
    return next((kind for kind, pattern in _ERRORS if re.search(pattern, error)), None)


def _found_to_hang(attempt: Attempt, report: FailureReport, failed: list[int]) -> Cause:
    """A watchdog says for which rank the others wait. Where that one does not answer, its node is to blame."""
    sentence = report.message
    if attempt.stacks_path.is_dir():
        sentence += f"; every rank's stacks are in {attempt.stacks_path}"
    if report.stuck is None:
        return Cause("hung", sentence, secondary_failures=tuple(failed))
    kind: CauseKind = "hung" if report.stuck.answers else "unresponsive"
    return Cause(kind, sentence, report.stuck.rank, report.stuck.host, _others(failed, report.stuck.rank))


def _reported(report: FailureReport, beats: dict[int, HeartbeatRecord], failed: list[int]) -> Cause:
    """A rank says what it failed of."""
    message = (report.message.strip().splitlines() or [""])[0][:_LONGEST]
    user_error = report.exit_code == 2
    kind = classify_error(f"{report.error}: {report.message}") or ("data" if user_error else "program")
    verb = _VERBS.get(kind, "failed")
    text = message if kind in ("data", "superseded") or not message else f"{report.error}: {message}"
    step = _when(beats.get(report.rank))
    sentence = f"rank {report.rank} on {report.host} {verb}{step}: {text or report.error}"
    return Cause(kind, sentence, report.rank, report.host, _others(failed, report.rank), user_error)


def _told_by_log(attempt: Attempt, beats: dict[int, HeartbeatRecord], failed: list[int]) -> Cause | None:
    """A rank that was aborted, so that it left no report: its log ends with what it died of."""
    causes = []
    for rank, beat in beats.items():
        words = find_last_words(attempt.log_path(rank)) if rank not in failed else ""
        if words:
            kind = classify_error(words) or "program"
            sentence = f"rank {rank} on {beat.host} {_VERBS.get(kind, 'aborted')}{_when(beat)}: {words[:_LONGEST]}"
            causes.append(Cause(kind, sentence, rank, beat.host, _others(failed, rank)))
    return min(causes, key=lambda cause: cause.kind != "device", default=None)


def _told_by_slurm(output: str, beats: dict[int, HeartbeatRecord], failed: list[int]) -> Cause | None:
    """What srun and slurmstepd say of tasks and nodes. The first of it counts: once one task has ended, srun kills the
    rest, and says so in the same words."""
    interruption = _find_interruption(output, failed)
    killing = _TERMINATED.search(output)
    death = _DIED.search(output, 0, killing.start() if killing else len(output))
    if interruption is not None:
        position, cause = interruption
        if death is None or position < death.start():
            return cause
    return _describe_death(death, output, beats, failed) if death is not None else None


def _find_interruption(output: str, failed: list[int]) -> tuple[int, Cause] | None:
    """The first thing that SLURM says of the machine, not of a task, and where in `output`."""
    interruptions = []
    for kind, pattern, sentence in _INTERRUPTIONS:
        match = re.search(pattern, output)
        if match is not None:
            host = match[1] if match.groups() else None
            cause = Cause(kind, sentence.format(host), host=host, secondary_failures=tuple(failed))
            interruptions.append((match.start(), cause))
    return min(interruptions, key=lambda interruption: interruption[0], default=None)


def _describe_death(death: re.Match[str], output: str, beats: dict[int, HeartbeatRecord], failed: list[int]) -> Cause:
    """`death` is srun's line about the first task that ended: its node, its number, and how."""
    host, rank, ending = death[1], int(death[2]), death[3].strip()
    step = _when(beats.get(rank))
    others = _others(failed, rank)
    if _OOM_KILL.search(output) or ending.startswith("Out Of Memory"):
        return Cause("out of memory", f"rank {rank} on {host} was killed{step}: no memory left", rank, host, others)
    if ending.startswith("Killed"):
        return Cause("killed", f"rank {rank} on {host} was killed from outside{step}", rank, host, others)
    return Cause("program", f"rank {rank} on {host} died{step}: {ending}", rank, host, others)


def _told_by_silence(attempt: Attempt, beats: dict[int, HeartbeatRecord], failed: list[int]) -> Cause | None:
    """A node whose ranks all fell silent while those of the others went on; or a rank that left no report."""
    last: dict[str, float] = {}
    for beat in beats.values():
        last[beat.host] = max(last.get(beat.host, 0.0), beat.time)
    by_silence = sorted(last.items(), key=lambda item: item[1])
    world_size = AttemptPlan.read(attempt.plan_path).batch_plan.shape.world_size
    silence = SILENCE * choose_heartbeat_period(world_size)
    if not failed and len(last) > 1 and by_silence[1][1] - by_silence[0][1] > silence:
        return Cause("node lost", f"node {by_silence[0][0]} was lost", host=by_silence[0][0])
    silent = [rank for rank in range(world_size) if rank not in failed]
    if failed and len(silent) == 1 and silent[0] in beats:
        rank, beat = silent[0], beats[silent[0]]
        death = f"rank {rank} on {beat.host} exited in step {beat.step + 1} without an error report"
        return Cause("killed", f"{death} (SIGKILL or out of memory?)", rank, beat.host, tuple(failed))
    return None


def _unknown(failed: list[int]) -> Cause:
    if failed:
        sentence = "several ranks lost the connection to a peer; the first failure is unknown"
        return Cause("peer lost", sentence, secondary_failures=tuple(failed))
    return Cause("unknown", "lost, cause unknown")


def _others(failed: list[int], rank: int) -> tuple[int, ...]:
    return tuple(other for other in failed if other != rank)


def _srun_output(attempt: Attempt) -> str:
    """srun's words, and this attempt's part of the job's output."""
    output = attempt.launcher_log_path.read_text(errors="replace") if attempt.launcher_log_path.is_file() else ""
    allocation = Allocation.read_if_written(attempt.allocation_path)
    if allocation is None or allocation.output_path is None or not Path(allocation.output_path).is_file():
        return output
    following = Attempt(attempt.path.with_name(f"{attempt.number + 1:04d}"))
    after = Allocation.read_if_written(following.allocation_path)
    size = -1  # to the end of the file, unless the next attempt went on in it
    if after is not None and after.output_path == allocation.output_path:
        size = after.output_size - allocation.output_size
    with open(allocation.output_path, "rb") as file:
        file.seek(allocation.output_size)
        return output + file.read(size).decode(errors="replace")


def _when(beat: HeartbeatRecord | None) -> str:
    """What the rank was at, by its last sign of life."""
    if beat is None:
        return " before its first sign of life"
    return f" while {beat.doing}" if beat.doing.startswith(_BEFORE_STEPS) else f" in step {beat.step + 1}"
