"""What became of a run's attempts, as their own records tell: no queue and no clock of SLURM's is asked."""

import json
from dataclasses import dataclass

from configs import checkpoints
from configs.checkpoints import Resume
from configs.end import End
from configs.run_dir import Attempt, RunDir


@dataclass(frozen=True)
class Outcome:
    """One attempt that runs no more. Without an end it failed, or was lost with its node."""

    attempt: int
    end: End | None
    progressed: bool  # it committed a checkpoint that counts
    mistake: bool  # a rank says that the config or the data are wrong, which no repetition cures
    cause: str | None  # of the first rank that failed, in one line
    host: str | None  # where that rank was


def outcomes(run: RunDir, after: int) -> list[Outcome]:
    """Every attempt after number `after`, oldest first. For a run none of whose attempts is running."""
    attempts = run.attempts()
    origins = {record.checkpoint for attempt in attempts if (record := Resume.read(attempt)) and record.checkpoint}
    committed = {checkpoint.attempt for checkpoint in checkpoints.visible(run)}
    committed |= {int(name.rpartition("-a")[2]) for name in origins}  # pruned since, but gone on from
    return [_outcome(attempt, attempt.number in committed) for attempt in attempts if attempt.number > after]


def _outcome(attempt: Attempt, progressed: bool) -> Outcome:
    end, failures = End.read(attempt), attempt.failures()
    causes = [report for report in failures if not report["peer_lost"]] or failures
    if end is not None or not causes:
        return Outcome(attempt.number, end, progressed, False, None, None if end else silent_host(attempt))
    first = causes[0]
    cause = str(first["message"]).strip().splitlines() or [first["error"]]
    return Outcome(attempt.number, None, progressed, first["exit_code"] == 2, cause[0], first["host"])


def silent_host(attempt: Attempt) -> str | None:
    """The node whose ranks fell silent first, where all ranks of another one went on for a while: it was lost."""
    last: dict[str, float] = {}
    for path in attempt.heartbeat(0).parent.glob("rank-*.json"):
        beat = json.loads(path.read_text())
        last[beat["host"]] = max(last.get(beat["host"], 0.0), beat["time"])
    if len(last) < 2:
        return None
    (host, silent), (_, next_silent) = sorted(last.items(), key=lambda item: item[1])[:2]
    return host if next_silent - silent > SILENCE else None


SILENCE = 3.0  # seconds between two nodes' last signs of life that tell a lost one from one that was stopped with all
