"""What a run's cache of encodings will take, and whether it can be written: before anything starts."""

import dataclasses
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from configs.errors import LockstepError
from configs.known_models import PipelineSize
from configs.schema import RunConfig
from configs.solve.encodings import EncodingsSize, estimate_encodings
from configs.solve.hardware import Hardware
from configs.solve.model_size import read_model_size
from launcher.format import format_size
from store.dataset.index import Index
from store.encodings.access import check_room
from store.encodings.family import find_families, find_map_name, list_path
from store.encodings.rate import EncodingRate
from store.encodings.shards import measure_shards


@dataclass(frozen=True)
class EncodingsPlan:
    """Of one run. None is unknown."""

    folder: Path
    sizes: list[EncodingsSize] | None
    per_second: float | None  # moments of one rank, when this model's were last encoded here
    device: str  # that this was measured on
    encoded: bool  # whether all of it was there, when these samples were last encoded

    def count_minutes(self, ranks: int) -> float | None:
        """For all that a dataset needs, where nothing of it is there; None where nobody has measured it."""
        if self.sizes is None or self.per_second is None:
            return None
        return sum(size.count for size in self.sizes if size.kind == "moments") / self.per_second / ranks / 60


def plan_encodings(
    config: RunConfig, size: PipelineSize, hardware: Hardware, samples: int, captions: int, version: str | None
) -> EncodingsPlan | None:
    """Reads what the cache's folder says of earlier times, and no encoding; None where nothing is cached. `captions`:
    of all samples; `version`: of their index, where there is one."""
    if config.data.cached == "off":
        return None
    sizes = estimate_encodings(config, size, hardware, samples, captions)
    rates = [rate for rate in _read_rates(config) if (rate.device != "cpu") == hardware.gpus]
    newest = rates[-1] if rates else None
    return EncodingsPlan(
        list_path(config.cache_folder),
        sizes,
        None if newest is None else newest.per_second,
        "" if newest is None else newest.device,
        encoded=version is not None and _is_encoded(config, version),
    )


def describe_encodings(plan: EncodingsPlan, ranks: int) -> str:
    """For a person, one sentence."""
    if plan.sizes is None:
        return "unknown, because the model's files are not here"
    kinds = [f"{size.count:,} {size.kind}, {format_size(size.bytes)}" for size in plan.sizes]
    minutes = plan.count_minutes(ranks)
    time = "to encode; the time is not known before the first are"
    if plan.encoded:
        time = "encoded already"
    elif minutes is not None:
        speed = f"at {plan.per_second:.3g} per second and rank, as measured on {plan.device}"
        time = f"to encode where none are there, about {minutes:.0f} min {speed}"
    return f"{' and '.join(kinds)}, {time}"


def encodings_to_json(plan: EncodingsPlan, ranks: int) -> dict[str, object]:
    """The same for programs."""
    sizes = None if plan.sizes is None else [dataclasses.asdict(size) for size in plan.sizes]
    return {"folder": str(plan.folder), "sizes": sizes, "minutes": plan.count_minutes(ranks), "encoded": plan.encoded}


def check_encodings_room(config: RunConfig, index: Index, model: Path, hardware: Hardware) -> None:
    """Raises UserError where the run must encode and its encodings cannot be written, or have no room beside those of
    its model that are there: which of these it needs, its ranks find out."""
    if config.data.cached == "off" or _is_encoded(config, index.version):
        return
    size, captions = read_model_size(str(model)), index.caption_count
    sizes = estimate_encodings(config, size, hardware, len(index), captions) or []
    present = sum(measure_shards(family) for family in find_families(config.cache_folder, config.model))
    check_room(config.cache_folder, max(0, sum(size.bytes for size in sizes) - present))


def _is_encoded(config: RunConfig, version: str) -> bool:
    """Whether there are moments of this version of the index; by which VAE, the ranks find out."""
    name = find_map_name(config, version)
    families = find_families(config.cache_folder, config.model)
    return any(family.map_path(name).is_file() for family in families)


def _read_rates(config: RunConfig) -> Iterator[EncodingRate]:
    """Of this model, oldest first."""
    families = find_families(config.cache_folder, config.model)
    paths = [family.rate_path for family in families if family.path.name.startswith("moments-")]
    for path in sorted(filter(Path.is_file, paths), key=lambda path: path.stat().st_mtime):
        with suppress(LockstepError):  # half of one tells nothing
            yield EncodingRate.read(path)
