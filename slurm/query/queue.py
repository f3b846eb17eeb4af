"""What SLURM says of jobs: one question for all of them, and which source answered."""

import re
import shutil
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from configs.errors import LockstepError
from slurm.query.ask import run_slurm_command

ENDED = {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED"}
ENDED |= {"REVOKED", "TIMEOUT"}  # any other word, also one of a newer release, is of a job that may run
UNKNOWN, NOBODY = "UNKNOWN", "nobody"
_CURE = "cancel it and submit it again with another partition, or with {}"
_NEVER = {  # reasons of SLURM's that no waiting cures
    "PartitionTimeLimit": f"the partition allows less time; {_CURE.format('a shorter cluster.time')}",
    "PartitionNodeLimit": f"the partition allows fewer or more nodes; {_CURE.format('other cluster.nodes')}",
}
# SLURM's own reasons: "launch failure limit exceeded requeued held" after too many preemptions, JobHeldAdmin, …
_HELD = re.compile("[Hh]eld|ReservationDeleted")
_TASKS = re.compile(r"(\d+)(?:-(\d+)(?::(\d+))?)?")  # of an array, `0,2-8:2`
_SQUEUE = "%i|%T|%r|%N|%S|%e"  # in the order of Job's fields, as in the other two
_SACCT = "JobID,State,Reason,NodeList,Start,End"
_SCONTROL = ("JobState", "Reason", "NodeList", "StartTime", "EndTime")


@dataclass(frozen=True)
class Job:
    """One job. `start` and `end` are SLURM's own text in the cluster's time zone, '' where it has none."""

    id: str
    state: str  # SLURM's word; UNKNOWN where nobody knows the job
    reason: str = ""
    nodes: str = ""
    start: str = ""
    end: str = ""  # while it runs, when its time is over
    source: str = NOBODY  # who told; of an unknown job nobody means that SLURM did not answer, so that it may run

    @property
    def name(self) -> str:
        return f"job {self.id}"

    @property
    def alive(self) -> bool:
        """Whether it runs, or may run yet."""
        return self.state != UNKNOWN and self.state not in ENDED

    @property
    def over(self) -> bool:
        """Whether it runs no more: SLURM says so, or answers and does not know it."""
        return self.source != NOBODY and not self.alive

    @property
    def held(self) -> bool:
        """Whether it was stopped for people to look at: by our own batch shell, or by SLURM after many preemptions."""
        return self.state in ("PENDING", "REQUEUE_HOLD") and "requeued" in self.reason and "held" in self.reason

    @property
    def needs_release(self) -> bool:
        """Whether it waits for somebody to release it, whoever holds it: the batch shell, SLURM, or a person."""
        return self.alive and bool(_HELD.search(self.reason))

    @property
    def start_time(self) -> float | None:
        """When it started or is expected to, in seconds since the epoch."""
        return parse_timestamp(self.start)

    @property
    def end_time(self) -> float | None:
        """When its time is over, in seconds since the epoch."""
        return parse_timestamp(self.end)

    @property
    def wait_reason(self) -> str:
        """SLURM's word for why it waits, and what to do where waiting does not help."""
        return f"{self.reason}: {_NEVER[self.reason]}" if self.reason in _NEVER else self.reason

    def describe(self) -> str:
        """What it is doing, for a person."""
        if self.state == "RUNNING":
            return f"running on {self.nodes}" + (f" until {self.end} at the latest" if self.end_time else "")
        if self.held:
            return "held until it is released or submitted again"
        if self.state == "PENDING":
            start = f", expected to start at {self.start}" if self.start_time is not None else ""
            return f"waiting in the queue ({self.wait_reason}){start}"
        return self.state.lower()


def has_slurm() -> bool:
    """Whether this machine can ask a SLURM at all."""
    return shutil.which("squeue") is not None


def query_jobs(ids: list[str]) -> dict[str, Job]:
    """Every job of `ids`: squeue, then sacct for those that left the queue, then scontrol where there is no accounting;
    each is asked at most once for all of them, and scontrol once more about a single one that it does not know.

    Empty where there is no SLURM on this machine.
    """
    if not ids or not has_slurm():
        return {}
    queued = _squeue(ids)
    jobs, source = queued or {}, NOBODY
    missing = [job for job in ids if job not in jobs]
    if missing:
        jobs |= _sacct(missing)
    missing = [job for job in ids if job not in jobs]
    if missing:
        shown = _scontrol(missing)
        jobs |= shown or {}
        if queued is not None and shown is not None:  # both have to answer to mean that there is no such job
            source = "scontrol"
    return {job: jobs.get(job, Job(job, UNKNOWN, source=source)) for job in ids}


def parse_timestamp(text: str) -> float | None:
    """A time as SLURM writes it, in seconds since the epoch; None for its '', N/A and Unknown."""
    with suppress(ValueError):
        return datetime.fromisoformat(text).timestamp()
    return None


def query_job_scripts() -> list[tuple[Job, Path]] | None:
    """The user's living jobs and the scripts they were made from, oldest first: for when nobody has noted down an id.
    None where squeue does not answer."""
    lines = _lines(["squeue", "--noheader", "--array", "--me", "--sort=i", f"--format={_SQUEUE}|%o"])
    if lines is None:
        return None
    rows = [line.split("|", 6) for line in lines]  # a job's command may be anything, or none
    return [(_parse_job(row, "squeue"), Path(row[6])) for row in rows if len(row) == 7]


def find_job_by_script(script: Path) -> str | None:
    """The id of the user's job that was made from the file `script`, of an array the whole array's; '' where there is
    none, None where squeue does not answer."""
    lines = _lines(["squeue", "--noheader", "--states=all", "--me", "--format=%F|%o"])
    if lines is None:
        return None
    for line in lines:
        job, _, command = line.partition("|")
        if command == str(script):
            return job
    return ""


def cancel_job(job: str, *, only_pending: bool = False) -> None:
    """As `scancel` does; with `only_pending` nothing happens to a job that has started. Raises LockstepError where
    SLURM refuses it, or does not answer, and the job is not over."""
    options = ["--state=PENDING"] if only_pending else []
    done = subprocess.run(["scancel", *options, job], check=False, capture_output=True, text=True)
    if done.returncode and not query_jobs([job])[job].over:
        raise LockstepError(f"scancel {job}: {' '.join(done.stderr.split()).removeprefix('scancel: error: ')}")


def _squeue(ids: list[str]) -> dict[str, Job] | None:
    """All jobs of the user that are in the queue; asking for ids would fail for those that have left it. None where it
    does not answer."""
    lines = _lines(["squeue", "--noheader", "--array", "--states=all", "--me", f"--format={_SQUEUE}"])
    if lines is None:
        return None
    ours = set(ids)
    jobs = [_parse_job(line.split("|"), "squeue") for line in lines]
    return {job.id: job for job in jobs if job.id in ours}


def _sacct(ids: list[str]) -> dict[str, Job]:
    command = ["sacct", "--noheader", "--parsable2", "--allocations", f"--format={_SACCT}", f"--jobs={','.join(ids)}"]
    jobs = [_parse_job(line.split("|"), "sacct") for line in _lines(command) or ()]
    return {job.id: job for job in jobs}


def _scontrol(ids: list[str]) -> dict[str, Job] | None:
    """One question, too: for all that the controller remembers, where more than one job is asked for, or where that
    one is not known, which no release says in the same words. None where it does not answer."""
    jobs = {}
    command = ["scontrol", "--oneliner", "show", "job"]
    lines = _lines([*command, *ids]) if len(ids) == 1 else None
    if lines is None:
        lines = _lines(command)
    if lines is None:
        return None
    for line in lines:
        fields = dict(word.partition("=")[::2] for word in line.split())
        if "JobState" not in fields:
            continue
        row = [fields.get(key, "") for key in _SCONTROL]
        for job in _match_ids(fields, ids):
            jobs[job] = _parse_job([job, *row], "scontrol")
    return jobs


def _match_ids(fields: dict[str, str], ids: list[str]) -> list[str]:
    """Which of `ids` are meant by a job as scontrol shows it: the tasks of an array that wait are one, `0-1%2`."""
    array = fields.get("ArrayJobId")
    if array is None:
        return [job for job in ids if job == fields["JobId"]]
    tasks = _parse_tasks(fields.get("ArrayTaskId", "").partition("%")[0])
    matched = []
    for job in ids:
        owner, _, task = job.partition("_")
        if owner == array and task and any(int(task) in numbers for numbers in tasks):
            matched.append(job)
    return matched


def _parse_tasks(text: str) -> list[range]:
    """The tasks of an array, of `0,2-8:2`."""
    ranges = _TASKS.findall(text)
    return [range(int(first), int(last or first) + 1, int(step or 1)) for first, last, step in ranges]


def _parse_job(row: list[str], source: str) -> Job:
    """`row` is in the order of Job's fields."""
    job, state, reason, nodes, start, end = row[:6]
    return Job(job, state.split()[0], reason, nodes, start, end, source)  # sacct says "CANCELLED by 1000"


def _lines(command: list[str]) -> list[str] | None:
    """What the command answers; None where it fails or takes too long, for then the next source is asked."""
    try:
        done = run_slurm_command(command)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return done.stdout.splitlines() if done.returncode == 0 else None
