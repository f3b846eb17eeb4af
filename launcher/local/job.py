"""What is to be said of a run that this machine trains."""

from dataclasses import dataclass


@dataclass(frozen=True)
class LocalJob:
    """The processes of a run on this machine, or on another one without SLURM that shares the folder."""

    id: str  # the run's folder
    state: str  # RUNNING, COMPLETED, CANCELLED where it was stopped, UNKNOWN where nothing is under way
    source: str  # lock, heartbeat or records
    nodes: str = ""
    held: bool = False
    needs_release: bool = False
    reason: str = ""
    wait_reason: str = ""
    start_time: float | None = None
    end_time: float | None = None

    @property
    def name(self) -> str:
        return "the local run"

    @property
    def alive(self) -> bool:
        return self.state == "RUNNING"

    @property
    def over(self) -> bool:
        return not self.alive

    def describe(self) -> str:
        return f"running on {self.nodes}"
