"""The small files of a run directory as typed values: what one process writes for others, and for later attempts.

Each is a JSON object with the number of its schema. A record gains fields with defaults and keeps the names that its
fields once had as aliases, so that what any earlier version wrote is read, also where it wrote no number at all.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

from pydantic import AliasChoices, AliasPath, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import from_json

from configs.errors import LockstepError
from store.files import write_atomic
from store.run.run_dir import Attempt

EXPORTING = "exporting"  # what rank 0 does once all steps are made and saved
REMOVE = "remove it"  # the cure of a damaged record that only watches


@dataclass(frozen=True)
class Record:
    """One JSON file. Fields that are not known are ignored: another version of the same schema wrote them."""

    SCHEMA: ClassVar[int] = 1  # raised where a file can no longer be read by what read it before
    # Of a damaged file. Most records hold what nothing else tells: which attempts count, and what was saved.
    CURE: ClassVar[str] = "bring back a whole copy of it"
    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(strict=True, allow_inf_nan=False)

    def write(self, path: Path, *, durable: bool = True) -> None:
        """Write the file so that a reader sees all of it or none; `durable`: also after a power loss."""
        write_atomic(path, self.to_text(), durable=durable)

    def to_text(self) -> str:
        """The file's content."""
        fields = _adapter(type(self)).dump_python(self, mode="json")
        return json.dumps({"schema": self.SCHEMA, **fields}, indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def read(cls, path: Path) -> Self:
        """Raises LockstepError, naming the file, where it is missing, damaged, or of a newer schema."""
        record = cls.read_if_written(path)
        if record is None:
            raise LockstepError(f"{path}: is missing")
        return record

    @classmethod
    def read_if_written(cls, path: Path) -> Self | None:
        """As `read`; None where there is no file."""
        try:
            content = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise LockstepError(f"{path}: cannot be read ({error.strerror})") from None
        return cls.parse(content, path)

    @classmethod
    def parse(cls, content: bytes, path: Path) -> Self:
        """The record in `content`, which is that of `path`. Raises LockstepError as `read` does."""
        try:
            value = from_json(content)
            if not isinstance(value, dict):
                raise ValueError("it is not a JSON object")
            schema = value.get("schema", 0)
            if not isinstance(schema, int):
                raise ValueError("schema: it is not a whole number")
            if schema > cls.SCHEMA:
                raise LockstepError(
                    f"{path}: a newer Lockstep wrote it (schema {schema}, and this one reads up to {cls.SCHEMA}); "
                    "update Lockstep"
                )
            record: Self = _adapter(cls).validate_json(content)
        except ValueError as error:
            raise LockstepError(f"{path}: is damaged ({_describe(error)}); {cls.CURE}") from None
        return record


_ADAPTERS: dict[type[Record], TypeAdapter[Any]] = {}


def _adapter(record: type[Record]) -> TypeAdapter[Any]:
    """Pydantic's reader and writer of `record`, made when it is first needed."""
    if record not in _ADAPTERS:
        _ADAPTERS[record] = TypeAdapter(record)
    return _ADAPTERS[record]


def _describe(error: ValueError) -> str:
    """The first thing that is wrong."""
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors(include_url=False)[0]
    key = ".".join(map(str, first["loc"]))
    return f"{key}: {first['msg']}" if key else first["msg"]


@dataclass(frozen=True)
class ResumePoint(Record):
    """Where an attempt starts: after `step`, from checkpoint `checkpoint` (None: the base model)."""

    step: int
    checkpoint: str | None
    nonce: str


@dataclass(frozen=True)
class ForkOrigin(Record):
    """Whose weights a fork starts from."""

    run: str  # the parent's folder
    checkpoint: str


@dataclass(frozen=True)
class SavedCheckpoint(Record):
    """What an attempt committed last, noted down outside the folder that holds it."""

    checkpoint: str


@dataclass(frozen=True)
class Allocation(Record):
    """The nodes on which SLURM started an attempt, and why it was started. Times are seconds since the epoch."""

    job: str
    nodes: list[str]
    time: float  # when the attempt was opened
    reason: Annotated[str, Field(validation_alias=AliasChoices("reason", "because"))] = ""
    # Nodes of the job that are left alone, and why.
    excluded_nodes: Annotated[dict[str, str], Field(validation_alias=AliasChoices("excluded_nodes", "left_out"))] = (
        field(default_factory=dict)
    )
    # When SLURM ends it at the latest; None where nothing does.
    deadline: Annotated[float | None, Field(validation_alias=AliasChoices("deadline", "time_is_over"))] = None
    batch_host: str | None = None  # where the batch script runs
    # The job's output, which all attempts share, and its size in bytes where this attempt's part of it begins.
    output_path: Annotated[
        str | None, Field(validation_alias=AliasChoices("output_path", AliasPath("output", "path")))
    ] = None
    output_size: Annotated[int, Field(validation_alias=AliasChoices("output_size", AliasPath("output", "size")))] = 0


@dataclass(frozen=True)
class HeartbeatRecord(Record):
    """The last sign of life of one rank. Times are seconds since the epoch."""

    CURE = REMOVE

    rank: int
    host: str
    pid: int
    time: float
    step: int  # steps that are done
    doing: str  # loading, training, …
    since: float  # when it began with that
    # When it must have come to something else, or else it hangs; None where nobody can tell.
    due: float | None = None
    # That it has begun, once the ranks were found to hang and it has written down what it is at; None before.
    collectives: int | None = None


@dataclass(frozen=True)
class StuckRank:
    """The rank for which the others of an attempt that hangs were found to wait."""

    rank: int
    host: str
    answers: bool  # its process lives and gives signs of life, so that it is the program that hangs, and not the node


@dataclass(frozen=True)
class FailureReport(Record):
    """What a rank says of its own end."""

    CURE = REMOVE

    rank: int
    host: str
    pid: int
    time: float  # seconds since the epoch
    log_size: int  # bytes of the rank's log that are not about this failure
    error: str  # the exception's class
    message: str
    peer_lost: bool  # it failed of another rank's end: a victim, not the cause
    traceback: str | None  # None where the message says all
    exit_code: int
    stuck: StuckRank | None = None  # where the ranks hang, and it is known of which


def read_heartbeats(attempt: Attempt) -> dict[int, HeartbeatRecord]:
    """The last sign of life of every rank that gave one, by rank. Raises LockstepError for one that is damaged."""
    paths = (attempt.path / "heartbeats").glob("rank-*.json")
    records = [record for record in map(read_heartbeat, paths) if record is not None]
    return {record.rank: record for record in sorted(records, key=lambda record: record.rank)}


def read_heartbeat(path: Path) -> HeartbeatRecord | None:
    """One rank's; None where it gave none. Heartbeats are not made durable: a node that lost its power may leave a file
    that is empty or holds nothing but zeros, and that is no heartbeat. Raises LockstepError for one that is damaged."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise LockstepError(f"{path}: cannot be read ({error.strerror})") from None
    return HeartbeatRecord.parse(content, path) if content.strip(b"\0") else None


def read_failures(attempt: Attempt) -> list[FailureReport]:
    """The failure reports of all ranks, first in time first. Raises LockstepError for one that is damaged."""
    paths = (attempt.path / "failures").glob("rank-*.json")
    return sorted((FailureReport.read(path) for path in paths), key=lambda report: report.time)
