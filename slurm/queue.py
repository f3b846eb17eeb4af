"""What SLURM says of jobs: one question for all of them, and which source answered."""

import shutil
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

ALIVE = {"PENDING", "RUNNING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "RESIZING", "SUSPENDED", "CONFIGURING"}
ALIVE |= {"COMPLETING", "SIGNALING", "STAGE_OUT", "STOPPED", "SPECIAL_EXIT"}
_SQUEUE = "%i|%T|%r|%N|%S|%e"  # in the order of Job's fields, as in the other two
_SACCT = "JobID,State,Reason,NodeList,Start,End"
_SCONTROL = ("JobState", "Reason", "NodeList", "StartTime", "EndTime")


@dataclass(frozen=True)
class Job:
    """One job. Times are SLURM's own text in the cluster's time zone, '' where it has none."""

    id: str
    state: str  # SLURM's word; UNKNOWN where nobody knows the job
    reason: str = ""
    nodes: str = ""
    start: str = ""
    end: str = ""  # while it runs, when its time is over
    source: str = "nobody"

    @property
    def alive(self) -> bool:
        """Whether it runs, or may run yet."""
        return self.state in ALIVE

    @property
    def held(self) -> bool:
        """Whether our own batch shell stopped it for people to look at."""
        return self.state == "PENDING" and "requeued" in self.reason and "held" in self.reason


def look(ids: list[str]) -> dict[str, Job]:
    """Every job of `ids`: squeue, then sacct for those that left the queue, then scontrol where there is no accounting;
    each is asked at most once, for all of them.

    Empty where there is no SLURM on this machine.
    """
    if not ids or shutil.which("squeue") is None:
        return {}
    found = _squeue(ids)
    if missing := [job for job in ids if job not in found]:
        found |= _sacct(missing)
    if missing := [job for job in ids if job not in found]:
        found |= _scontrol(missing)
    return {job: found.get(job, Job(job, "UNKNOWN")) for job in ids}


def moment(text: str) -> float | None:
    """A time as SLURM writes it, in seconds since the epoch; None for its '', N/A and Unknown."""
    with suppress(ValueError):
        return datetime.fromisoformat(text).timestamp()
    return None


def of_script_in(folder: Path) -> list[Job]:
    """The living jobs whose script lies in `folder`, oldest first: for when nobody has noted down an id."""
    lines = [
        line.split("|", 1) for line in _lines(["squeue", "--noheader", "--array", "--me", "--sort=i", "--format=%i|%o"])
    ]
    jobs = look([job for job, script in lines if Path(script).parent == folder])
    return [job for job in jobs.values() if job.alive]


def in_words(job: Job) -> str:
    """What it is doing, for a person."""
    if job.state == "RUNNING":
        return f"running on {job.nodes} until {job.end} at the latest"
    if job.held:
        return "held, and waits for you"
    if job.state == "PENDING":
        start = f", expected to start at {job.start}" if job.start not in ("", "N/A", "Unknown") else ""
        return f"waiting in the queue ({job.reason}){start}"
    return job.state.lower()


def cancel(job: str) -> None:
    """As `scancel` does."""
    subprocess.run(["scancel", job], check=False, capture_output=True)


def _squeue(ids: list[str]) -> dict[str, Job]:
    """All jobs of the user that are in the queue; asking for ids would fail for those that have left it."""
    lines = _lines(["squeue", "--noheader", "--array", "--states=all", "--me", f"--format={_SQUEUE}"])
    jobs, wanted = (_job(line.split("|"), "squeue") for line in lines), set(ids)
    return {job.id: job for job in jobs if job.id in wanted}


def _sacct(ids: list[str]) -> dict[str, Job]:
    command = ["sacct", "--noheader", "--parsable2", "--allocations", f"--format={_SACCT}", f"--jobs={','.join(ids)}"]
    return {job.id: job for job in (_job(line.split("|"), "sacct") for line in _lines(command))}


def _scontrol(ids: list[str]) -> dict[str, Job]:
    """One question, too: for all that the controller remembers, where more than one job is asked for."""
    jobs = {}
    for line in _lines(["scontrol", "--oneliner", "show", "job", *(ids if len(ids) == 1 else [])]):
        words = dict(word.partition("=")[::2] for word in line.split())
        if "JobState" in words:
            array = words.get("ArrayJobId")
            job = f"{array}_{words.get('ArrayTaskId')}" if array else words["JobId"]
            jobs[job] = _job([job, *(words.get(key, "") for key in _SCONTROL)], "scontrol")
    return {job: jobs[job] for job in ids if job in jobs}


def _job(fields: list[str], source: str) -> Job:
    job, state, reason, nodes, start, end = fields[:6]
    return Job(job, state.split()[0], reason, nodes, start, end, source)  # sacct says "CANCELLED by 1000"


def _lines(command: list[str]) -> list[str]:
    """What the command answers; nothing where it fails, for then the next source is asked."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return []
    return done.stdout.splitlines() if done.returncode == 0 else []
