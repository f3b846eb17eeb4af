"""What a dataset holds, as one value that the text and the JSON of `lockstep data` print."""

import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from configs.errors import LockstepError, UserError
from configs.reading.load import dump_config
from configs.schema import RunConfig, SourceConfig
from configs.solve.buckets import list_crop_sizes
from launcher.data.dataset import index_dataset
from launcher.data.duplicates import DuplicateImages, find_duplicates
from launcher.hub.fetch import resolve_tokenizer
from store.dataset.caption_lengths import CaptionLengths
from store.dataset.index import Index
from store.dataset.kept_index import KeptIndex
from store.dataset.sample import BadSample

# Width / height at which one bar of aspect ratios ends and the next begins, and the names of the bars.
RATIO_LIMITS = (0.5, 0.7, 0.97, 1.03, 1.43, 2.0)
RATIO_NAMES = (
    "1:2 or taller",
    "up to 7:10",
    "nearly square, tall",
    "square",
    "nearly square, wide",
    "up to 2:1",
    "wider",
)


@dataclass(frozen=True)
class Spread:
    """Where numbers lie."""

    least: int
    median: int
    most: int


@dataclass(frozen=True)
class SourceReport:
    """One entry of data.sources."""

    source: SourceConfig
    samples: int
    size: int  # of its images, in bytes


@dataclass(frozen=True)
class DatasetReport:
    """What `lockstep data` shows."""

    config: RunConfig
    sources: list[SourceReport]
    short_sides: Spread  # in pixels
    enlarged: int  # images with fewer pixels than what they are trained as
    ratios: list[int]  # images in each of RATIO_NAMES
    captions: int
    lengths: CaptionLengths | None
    uncounted: str  # why there are no lengths
    bad_samples: list[BadSample]
    duplicates: list[DuplicateImages] | None  # None where nobody looked
    sheet: Path | None


def make_report(config: RunConfig, *, duplicates: bool, sheet: Path | None) -> DatasetReport:
    """Look at the dataset of `config`: build its index, as submit does, and what else is wanted.

    Raises UserError where a source cannot be had, no sample is good, or the sheet cannot be drawn.
    """
    if sheet is not None and not sheet.absolute().parent.is_dir():
        raise UserError(f"{sheet}: its folder is not there; name another file with --sheet")
    tokenizer, uncounted = _find_tokenizer(config)
    kept = index_dataset(config)
    index = kept.index
    if not len(index):
        first = kept.bad_samples[0].problem if kept.bad_samples else "there is none"
        raise UserError(f"the dataset holds no good sample; the first bad one: {first}")
    short = np.minimum(index.widths, index.heights)
    least = min(min(size) for size in list_crop_sizes(config.data))
    ratios = np.bincount(np.searchsorted(RATIO_LIMITS, index.widths / index.heights), minlength=len(RATIO_NAMES))
    return DatasetReport(
        config=config,
        sources=_list_sources(config, index),
        short_sides=Spread(int(short.min()), int(np.median(short)), int(short.max())),
        enlarged=int((short < least).sum()),
        ratios=ratios.tolist(),
        captions=sum(len(sample.captions) for sample in index),
        lengths=_inspect(config, kept, tokenizer, sheet),
        uncounted=uncounted,
        bad_samples=kept.bad_samples,
        duplicates=find_duplicates(index) if duplicates else None,
        sheet=sheet,
    )


def _list_sources(config: RunConfig, index: Index) -> list[SourceReport]:
    reports, start = [], 0
    for source, samples in zip(config.data.listed_sources, index.source_sizes, strict=True):
        reports.append(SourceReport(source, samples, int(index.lengths[start : start + samples].sum())))
        start += samples
    return reports


def _find_tokenizer(config: RunConfig) -> tuple[Path | None, str]:
    """The folder of the model's tokenizer, or why it cannot be had: all the rest can be told without it."""
    try:
        return resolve_tokenizer(config), ""
    except UserError as error:
        return None, str(error)


def _inspect(config: RunConfig, kept: KeptIndex, tokenizer: Path | None, sheet: Path | None) -> CaptionLengths | None:
    """By a process of its own, since this package imports no torch."""
    if tokenizer is None and sheet is None:
        return None
    with tempfile.TemporaryDirectory(prefix="lockstep-") as folder:
        file, lengths = Path(folder, "run.yaml"), Path(folder, "lengths.json")
        file.write_text(dump_config(config))
        words = [str(file), str(kept.path)]
        if tokenizer is not None:
            words += ["--tokenizer", str(tokenizer), "--lengths", str(lengths)]
        if sheet is not None:
            words += ["--sheet", str(sheet.absolute())]
        quiet = {"TRANSFORMERS_VERBOSITY": "error", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, "-P", "-m", "lockstep", "train.inspection", *words]
        done = subprocess.run(command, env=os.environ | quiet, capture_output=True, text=True, check=False)
        if done.returncode:
            error = UserError if done.returncode == UserError.exit_code else LockstepError
            raise error(done.stderr.strip())
        return CaptionLengths.read(lengths) if tokenizer is not None else None
