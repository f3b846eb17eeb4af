"""The manifest of a checkpoint: what it is, which files it holds, and the digest of each and of itself."""

import hashlib
import json
from dataclasses import MISSING, Field, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from configs.errors import LockstepError

MANIFEST_SCHEMA = 1
MANIFEST_NAME = "manifest.json"


@dataclass(frozen=True)
class Identity:
    """What every file of one checkpoint carries; a file that carries another one does not belong here."""

    run: str
    step: int
    attempt: int
    nonce: str  # of the attempt: two attempts that think they have the same number are still told apart
    layout: str  # digest of the trained parameters' names and sizes

    def as_text(self) -> dict[str, str]:
        """As a safetensors header's metadata, which holds text only."""
        return {key: str(value) for key, value in asdict(self).items()}


@dataclass(frozen=True)
class FileEntry:
    """One file of fragments: written by one rank, complete with this size and SHA-256."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """C(step): the state right after `step` steps, in files that know no world size and no ZeRO stage."""

    identity: Identity
    world_size: int
    zero: int | None  # its stage; None where the engine knows no such thing
    kinds: tuple[str, ...]  # of fp32 values: weights, the optimizer's states, ema
    optimizer_step: int  # updates that were applied: fewer than steps where fp16 skipped some
    skipped_steps: int
    loss_scaler: dict[str, float] | None
    files: tuple[FileEntry, ...]
    engine: str = "deepspeed"  # a name in train/engines; the only one, while manifests did not say it
    layouts: dict[str, str] = field(default_factory=dict)  # of the kinds whose values are not as many as the weights

    @property
    def size(self) -> int:
        """Bytes of all its files."""
        return sum(file.size for file in self.files)

    def to_text(self) -> str:
        """The file's content, with its schema number and the digest of all the rest."""
        body = {"schema": MANIFEST_SCHEMA, **asdict(self)}
        return json.dumps({**body, "digest": _digest(body)}, indent=2) + "\n"

    @classmethod
    def from_text(cls, text: str) -> "Manifest":
        """Fields that are not known are ignored: another version of the same schema wrote them.

        Raises ValueError where the text is not a whole manifest, LockstepError where it is one of a newer schema: that
        is no damage, and nothing is to be put in quarantine for it.
        """
        try:
            body = json.loads(text)
            digest = body.pop("digest")
            if digest != _digest(body):
                raise ValueError("does not match its own digest")
            if body["schema"] > MANIFEST_SCHEMA:
                raise LockstepError(
                    f"a newer Lockstep saved it (schema {body['schema']}, and this one reads up to {MANIFEST_SCHEMA}); "
                    "update Lockstep"
                )
            wanted = [known.name for known in fields(cls) if known.name in body or _is_required(known)]
            body = {name: body[name] for name in wanted}
            body["identity"] = Identity(**body["identity"])
            body["files"] = tuple(FileEntry(**file) for file in body["files"])
            body["kinds"] = tuple(body["kinds"])
            return cls(**body)
        except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
            raise ValueError(f"is not a manifest ({type(error).__name__}: {error})") from None


def _is_required(wanted: Field[Any]) -> bool:
    return wanted.default is MISSING and wanted.default_factory is MISSING


def digest_layout(sizes: dict[str, int]) -> str:
    """Digest of the trained parameters' names and elements, of weights or another kind: the same on every shape."""
    return hashlib.sha256(json.dumps(sorted(sizes.items())).encode()).hexdigest()


def digest_file(path: Path) -> str:
    """SHA-256 of the whole file, as hexadecimal text. Raises OSError."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
