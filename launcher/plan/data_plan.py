"""What a run trains on: its samples, and with buckets the sizes that they are cut to."""

from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

from configs.errors import UserError
from configs.schema import RunConfig
from configs.solve.batch import list_divisors
from configs.solve.buckets import CropSize, choose_crop_sizes, choose_grain, list_crop_sizes, measure_cropped
from configs.solve.length import count_epoch
from launcher.data.dataset import find_uncopied, plan_dataset
from launcher.format import format_count, format_size
from store.dataset.bad_samples import check_bad_samples
from store.dataset.identity import identify_dataset
from store.dataset.index import Index


@dataclass(frozen=True)
class BucketPlan:
    """The buckets of a run; what is cropped away is a share of an image's pixels, on average over an epoch."""

    sizes: list[tuple[CropSize, int]]  # with the samples that are cut to each
    grain: int
    micro_batches: list[int]  # that the grain allows
    cropped: float
    cropped_as_squares: float


@dataclass(frozen=True)
class DataPlan:
    samples: int
    epoch: int | Fraction  # samples of one
    captions: int  # of all samples; one of each where nothing is known of them
    buckets: BucketPlan | None = None  # None also where nothing is known of the images
    notes: list[str] = field(default_factory=list)
    version: str | None = None  # of the index; None where it was not looked at
    digest: str | None = None  # the identity of the dataset as submit will find it; None where that is not known


def plan_data(config: RunConfig, batch: int, samples: int | None) -> DataPlan:
    """What the index says of the dataset, or, where `samples` are given, only that it has so many.

    Raises UserError where a source is not there, or bad samples are not to be skipped.
    """
    if samples is not None:
        return DataPlan(samples, samples, samples)
    for source in config.data.listed_sources:
        if source.kind == "images" and not Path(source.place).is_dir():
            cure = "correct it, or pass --samples N to plan before the data is there"
            raise UserError(f"{source.place}: no such folder; {cure}")
    uncopied = find_uncopied(config)
    if uncopied is not None:
        copied = f"{format_size(uncopied.size)} of images to {uncopied.folder}"
        note = f"submit, and lockstep data, copy {copied}; a row of a parquet file cannot be read alone"
        sizes = uncopied.source_sizes
        return DataPlan(sum(sizes), count_epoch(config.data, sizes), sum(sizes), notes=[note])
    kept = plan_dataset(config)
    index = kept.index
    check_bad_samples(config.data, kept.bad_samples, len(index))
    notes = []
    if kept.bad_samples:
        skipped = format_count(len(kept.bad_samples), "bad sample")
        notes.append(f"{skipped} will be skipped; the first: {kept.bad_samples[0].problem}")
    epoch = count_epoch(config.data, index.source_sizes)
    buckets = plan_buckets(config, batch, index)
    # A run keeps the commits of its data sets on the hub, whatever has come there since.
    on_hub = any(source.hub is not None for source in config.data.listed_sources)
    digest = None if on_hub else identify_dataset(config.data, index)
    return DataPlan(len(index), epoch, index.caption_count, buckets, notes, index.version, digest)


def plan_buckets(config: RunConfig, batch: int, index: Index) -> BucketPlan | None:
    """The buckets that the images of `index` fill; None where the config has none."""
    grain = choose_grain(config.data, batch)
    if grain is None:
        return None
    import numpy as np

    sizes = list_crop_sizes(config.data)
    chosen = choose_crop_sizes(sizes, index.widths, index.heights)
    repeats = np.array([float(source.exact_repeats) for source in config.data.listed_sources])
    weights = np.repeat(repeats, index.source_sizes)
    shares = [
        float(np.average(measure_cropped(ratios, index.widths, index.heights), weights=weights))
        for ratios in (np.array([size.width / size.height for size in sizes])[chosen], 1.0)
    ]
    counts = np.bincount(chosen, minlength=len(sizes)).tolist()
    filled = [(size, count) for size, count in zip(sizes, counts, strict=True) if count]
    return BucketPlan(filled, grain, list_divisors(grain), *shares)
