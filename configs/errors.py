"""One error root and its children; the exit code belongs to the error (docs/design.md, contract 5)."""

from dataclasses import dataclass


class LockstepError(Exception):
    """Something failed that no config change cures; the shell sees 1."""

    exit_code = 1
    is_victim = False  # another rank is to blame, and says so itself


class UserError(LockstepError):
    """A user's mistake: one message with place, value, reason and cure; the shell sees 2, no traceback."""

    exit_code = 2


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a config, where it stands and how to cure it."""

    place: str  # `file:line:column`, or `command line`
    what: str

    def __str__(self) -> str:
        return f"{self.place}: {self.what}"


class ConfigError(UserError):
    """All problems of a config at once, one per line."""

    def __init__(self, problems: list[Problem]):
        self.problems = problems
        super().__init__("\n".join(str(problem) for problem in problems))
