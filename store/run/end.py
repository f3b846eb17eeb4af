"""The end record of an attempt (docs/design.md, contract 5). It decides: process exit codes on the way can lie."""

from dataclasses import dataclass
from typing import Literal

from store.run.records import Record

TIME_LIMIT = "the time limit"  # how a notice begins that the ranks give themselves
FINISHED, ON_NOTICE, FAILED = 0, 75, 1  # exit codes; that of a user's mistake is UserError.exit_code


@dataclass(frozen=True)
class End(Record):
    """Written by rank 0 after the final barrier."""

    reason: Literal["finished", "notice", "encoded"]
    step: int
    checkpoint: str | None  # the newest one's folder
    notice: str | None = None  # what asked for the stop: a signal's name, or a person

    @property
    def requested_by_user(self) -> bool:
        """Somebody wants the run to stand still; the others only say that the machine is needed or its time is up."""
        return self.notice is not None and not self.notice.startswith(("SIG", TIME_LIMIT))

    @property
    def is_final(self) -> bool:
        """Whether nothing goes on from it by itself."""
        return self.reason != "notice" or self.requested_by_user

    @property
    def exit_code(self) -> int:
        return ON_NOTICE if self.reason == "notice" else FINISHED
