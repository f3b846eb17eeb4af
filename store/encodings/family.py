"""What encodings have in common, the keys they are found by, and the folders in which they lie."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from configs.schema import RunConfig
from configs.solve.buckets import list_crop_sizes
from store.files import write_json

FORMAT = 1  # of all files of the cache: another one is another family, which is written anew
KEY_BYTES = 16
KEY_DTYPE = f"S{KEY_BYTES}"  # NumPy sorts these as bytes; what it reads from one ends before its last zeros, if any


@dataclass(frozen=True)
class Family:
    """All that decides what becomes of an image or a caption, beside itself.

    `facts` are text, such as the digest of the encoder's weights and the dtype; `about` is for people, and decides
    nothing.
    """

    kind: str  # moments or states
    facts: Mapping[str, str]
    about: Mapping[str, str]

    @property
    def digest(self) -> str:
        text = json.dumps([FORMAT, self.kind, dict(self.facts)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]


@dataclass(frozen=True)
class FamilyFolder:
    """`<cache folder>/encodings/<family>`."""

    path: Path

    @classmethod
    def for_family(cls, cache_folder: Path, family: Family) -> "FamilyFolder":
        return cls(list_path(cache_folder) / f"{family.kind}-{family.digest}")

    @property
    def about_path(self) -> Path:
        return self.path / "family.json"

    @property
    def rate_path(self) -> Path:
        """How fast this family was encoded the last time."""
        return self.path / "rate.json"

    @property
    def shards_path(self) -> Path:
        return self.path / "shards"

    @property
    def maps_path(self) -> Path:
        return self.path / "maps"

    def chunks_path(self, map_name: str) -> Path:
        """What is known of the samples of one index so far, a file for each chunk of them."""
        return self.maps_path / map_name / "chunks"

    def map_path(self, map_name: str) -> Path:
        """All that is known of the samples of one index."""
        return self.maps_path / map_name / "map.safetensors"

    def make(self, family: Family) -> None:
        """Raises OSError where that is not allowed, or there is no room."""
        for folder in (self.path, self.shards_path, self.maps_path):
            folder.mkdir(parents=True, exist_ok=True)
        if not self.about_path.exists():
            facts = {"format": FORMAT, "kind": family.kind, "facts": dict(family.facts), "about": dict(family.about)}
            write_json(self.about_path, facts)


def list_path(cache_folder: Path) -> Path:
    """The folder of all families."""
    return cache_folder / "encodings"


def find_families(cache_folder: Path, model: str) -> list[FamilyFolder]:
    """Those that `model`, as its runs' configs name it, has encoded. A family that cannot be read is none."""
    found = []
    for path in sorted(list_path(cache_folder).glob("*/family.json")):
        try:
            about = json.loads(path.read_bytes())["about"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if about.get("model") == model:
            found.append(FamilyFolder(path.parent))
    return found


def find_map_name(config: RunConfig, version: str) -> str:
    """The name of the maps of the moments of one version of an index: of that, and of what decides which views of its
    images are encoded."""
    data = config.data
    sizes = [str(size) for size in list_crop_sizes(data)]
    return name_map(version, [sizes, data.crop, data.flip, data.crops, config.seed if data.crops else None])


def name_map(version: str, settings: list[object]) -> str:
    """The name of a map of an index, of which `settings` decide what is encoded."""
    return hashlib.sha256(json.dumps([version, settings]).encode()).hexdigest()[:32]


def make_key(content: bytes, *details: object) -> bytes:
    """The key of an encoding: of what was encoded, given its bytes or their digest, and of what was made of it before,
    such as size, crop and flip. KEY_BYTES long."""
    return hashlib.sha256(content + json.dumps(details).encode()).digest()[:KEY_BYTES]


def digest_files(folder: Path, *patterns: str) -> str:
    """Of the files of `folder` that match: their names and contents. Raises OSError."""
    digest = hashlib.sha256()
    for path in sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}):
        with open(path, "rb") as file:
            digest.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()
