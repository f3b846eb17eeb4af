"""`python -P -m lockstep train.inspection CONFIG INDEX`, with `--tokenizer FOLDER --lengths FILE` for how long captions
are, and with `--sheet FILE` for samples as training will see them."""

import argparse
import sys
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from transformers import CLIPTokenizer

from configs.errors import LockstepError, UserError
from configs.reading.load import load_config
from configs.schema import RunConfig
from configs.solve.buckets import choose_grain
from store.dataset.caption_lengths import CaptionLengths
from store.dataset.index import Index
from train.inspection.contact_sheet import SampleViewer, draw_sheet
from train.models.tokens import count_tokens

SHOWN = 64  # samples on the sheet
_AT_ONCE = 1024  # captions


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -P -m lockstep train.inspection")
    parser.add_argument("config", type=Path)
    parser.add_argument("index", type=Path)
    parser.add_argument("--tokenizer", type=Path, help="the model's folder")
    parser.add_argument("--lengths", type=Path, help="file to write the captions' lengths to")
    parser.add_argument("--sheet", type=Path)
    args = parser.parse_args()
    config, index = load_config(args.config), Index.open_file(args.index)
    if args.tokenizer is not None:
        tokenizer = CLIPTokenizer.from_pretrained(args.tokenizer, subfolder="tokenizer")
        measure_captions(tokenizer, index, config.data.caption_tokens).write(args.lengths)
    if args.sheet is not None:
        write_sheet(config, index, args.sheet)


def measure_captions(tokenizer: CLIPTokenizer, index: Index, limit: int) -> CaptionLengths:
    """`limit`: the tokens that are read of a caption."""
    captions = (caption for sample in index for caption in sample.captions)
    counted: list[int] = []
    while chunk := list(islice(captions, _AT_ONCE)):
        counted += count_tokens(tokenizer, chunk)
    lengths: NDArray[np.int64] = np.array(counted)
    cut_off = int((lengths > limit).sum())
    return CaptionLengths(int(lengths.min()), int(np.median(lengths)), int(lengths.max()), cut_off)


def write_sheet(config: RunConfig, index: Index, path: Path) -> None:
    """Draw positions of the stream into the PNG `path`: the first ones; where buckets take turns grain by grain,
    some of each. Raises UserError where it cannot be written, or a sample does not decode."""
    viewer = SampleViewer(config, index)
    count = min(SHOWN, len(index))
    stride = min(choose_grain(config.data, config.batch or 1) or 1, len(index) // count)
    sheet = draw_sheet([viewer.view_sample(number * stride) for number in range(count)])
    try:
        sheet.save(path, format="PNG")
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); name another file with --sheet") from None


if __name__ == "__main__":
    try:
        main()
    except LockstepError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
