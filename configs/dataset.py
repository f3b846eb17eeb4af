"""The dataset as launcher and ranks agree on it: a list of images with their captions, in a fixed order.

Two layouts, told apart by what lies in the folder: `metadata.jsonl` (one JSON object per line with `file_name` and
`text`, as Hugging Face's imagefolder reads it), or one `.txt` beside each image.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from configs.errors import UserError
from configs.schema import Data

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}


@dataclass(frozen=True)
class Sample:
    """One image, relative to the dataset's folder, with its caption; `size` in bytes tells when it was replaced."""

    image: str
    caption: str
    size: int


@dataclass(frozen=True)
class Listing:
    """What a folder holds: the samples that are there, and what is wrong with the others, one sentence each."""

    samples: list[Sample]
    problems: list[str]


def list_samples(folder: Path) -> Listing:
    """The samples of `folder` in their fixed order: the file's order, or sorted by path. Opens no image."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; data.images names the folder of images")
    metadata = folder / "metadata.jsonl"
    listing = _from_metadata(folder, metadata) if metadata.is_file() else _from_pairs(folder)
    if not listing.samples and not listing.problems:
        raise UserError(f"{folder}: the dataset is empty; put images with metadata.jsonl, or with one .txt each, there")
    return listing


def check_images(folder: Path, listing: Listing) -> Listing:
    """`listing` less the images whose header does not read. Pixels are not decoded: that would read every byte."""
    from PIL import Image, UnidentifiedImageError

    def problem(sample: Sample) -> str | None:
        try:
            with Image.open(folder / sample.image):
                return None
        except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
            return f"{folder / sample.image}: does not decode as an image ({type(error).__name__})"

    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(problem, listing.samples, chunksize=64))
    good = [sample for sample, bad in zip(listing.samples, found, strict=True) if bad is None]
    return Listing(good, listing.problems + [bad for bad in found if bad is not None])


def settle(data: Data, listing: Listing) -> list[Sample]:
    """The samples to train on: all of them, or with `on_bad_sample: skip` those that are whole."""
    if listing.problems and data.on_bad_sample == "error":
        shown = listing.problems[:10]
        more = [f"and {len(listing.problems) - 10} more"] if len(listing.problems) > 10 else []
        cure = "mend or remove them, or write data.on_bad_sample: skip"
        raise UserError("\n".join([*shown, *more, f"{len(listing.problems)} bad samples in {data.images}; {cure}"]))
    if not listing.samples:
        raise UserError(f"{data.images}: every sample is bad, so the dataset is empty; first: {listing.problems[0]}")
    return listing.samples


def to_lines(samples: Iterable[Sample]) -> str:
    """The text of `dataset.jsonl`: one sample per line."""
    return "".join(json.dumps(asdict(sample), ensure_ascii=False) + "\n" for sample in samples)


def from_lines(text: str) -> list[Sample]:
    # Not splitlines(): JSON leaves U+2028 and its like as they are, and a caption may hold them.
    return [Sample(**json.loads(line)) for line in text.split("\n") if line]


def digest(text: str) -> str:
    """Identity of a dataset as its `dataset.jsonl` has it."""
    return hashlib.sha256(text.encode()).hexdigest()


def _from_metadata(folder: Path, metadata: Path) -> Listing:
    samples, problems = [], []
    text = _text(metadata)
    if text is None:
        raise UserError(f"{metadata}: is not UTF-8; save it as UTF-8")
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        place = f"{metadata}:{number}"
        try:
            record = json.loads(line)
            image, caption = record["file_name"], record["text"]
        except (json.JSONDecodeError, TypeError, KeyError) as error:
            what = f"has no {error}" if isinstance(error, KeyError) else "is no JSON object"
            raise UserError(f'{place}: {what}; each line is {{"file_name": "a.png", "text": "its caption"}}') from None
        if not isinstance(image, str) or not isinstance(caption, str):
            raise UserError(f"{place}: file_name and text must both be text")
        if (folder / image).is_file():
            samples.append(Sample(image, caption, (folder / image).stat().st_size))
        else:
            problems.append(f"{place}: {image} is missing from {folder}")
    return Listing(samples, problems)


def _from_pairs(folder: Path) -> Listing:
    images, captions = set(), set()
    for directory, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))  # .ipynb_checkpoints and the like
        for name in files:
            if name.startswith("."):
                continue
            path = Path(directory, name).relative_to(folder)
            if path.suffix.lower() in IMAGE_SUFFIXES:
                images.add(path)
            elif path.suffix == ".txt":
                captions.add(path)
    samples, problems = [], []
    stems = {path.with_suffix("") for path in images}
    for caption in sorted(captions):
        if caption.with_suffix("") not in stems:
            problems.append(f"{folder / caption}: the image it captions is missing")
    for image in sorted(images):
        caption = image.with_suffix(".txt")
        if caption in captions and (text := _text(folder / caption)) is not None:
            samples.append(Sample(image.as_posix(), text.strip(), (folder / image).stat().st_size))
        elif caption in captions:
            problems.append(f"{folder / caption}: is not UTF-8; save it as UTF-8")
        else:
            problems.append(f"{folder / image}: has no caption; write {caption.name} beside it")
    return Listing(samples, problems)


def _text(path: Path) -> str | None:
    """The file's text, None where it is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        return None
