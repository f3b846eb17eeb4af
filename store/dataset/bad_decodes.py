"""Samples that did not decode while a run trained: a list of each rank and attempt, and what follows from them all."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from configs.errors import LockstepError
from store.dataset.sample import BadSample
from store.run.run_dir import RunDir


@dataclass(frozen=True)
class BadDecode:
    """A sample in whose place another one was trained with."""

    sample: BadSample
    position: int  # the first one of which this rank knows, in this attempt

    def __str__(self) -> str:
        return f"skipped {self.sample.problem}; position {self.position} takes the next one"

    def format_line(self) -> str:
        record = {"sample": self.sample.name, "source": self.sample.source, "reason": self.sample.problem}
        return json.dumps(record | {"position": self.position}, ensure_ascii=False) + "\n"

    @classmethod
    def parse_line(cls, line: str) -> "BadDecode":
        """Raises ValueError or KeyError where `line` is none."""
        record = json.loads(line)
        return cls(BadSample(record["sample"], record["reason"], record["source"]), record["position"])


def list_bad_decodes(run: RunDir, end: int) -> list[BadDecode]:
    """The samples that were found bad at positions below `end` in any attempt, each once, with its first position.

    A run knows of each sample what any shape of it would: whatever an attempt found beyond `end` is found again.
    """
    first: dict[tuple[int, str], BadDecode] = {}
    for attempt in run.attempts():
        for path in sorted(attempt.bad_samples_path(0).parent.glob("rank-*.jsonl")):
            for found in _read_lines(path):
                key = found.sample.source, found.sample.name
                if found.position < end and (key not in first or found.position < first[key].position):
                    first[key] = found
    return sorted(first.values(), key=lambda found: found.position)


def _read_lines(path: Path) -> Iterator[BadDecode]:
    """A full disk or a lost node may have left half a line at the end, which is left out."""
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith("\n"):
                return
            try:
                yield BadDecode.parse_line(line)
            except (ValueError, KeyError, TypeError) as error:
                raise LockstepError(f"{path}:{number}: is damaged ({error}); remove the line") from None
