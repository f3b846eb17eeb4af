"""A sheet of samples as training will see them: what the first positions of the stream hold, with its captions."""

import textwrap
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from configs.pipelines import LatentShape
from configs.schema import RunConfig
from store.dataset.index import Index
from train.data.images import Crop
from train.data.stream import Stream

CELL = 160  # pixels, the longest side of one picture on the sheet
MARGIN = 8
LINE = 13  # pixels, the height of one line of a caption
LINES = 4  # of a caption
LETTERS = 28  # in a line
EMPTY = "(no caption: dropped)"


@dataclass(frozen=True)
class SeenSample:
    """What one position shows."""

    picture: Image.Image
    caption: str


@dataclass(frozen=True)
class _CaptionReader:
    """What the stream asks of a model, without one."""

    read_caption: Callable[[str], dict[str, torch.Tensor]]

    def read_crop(self, crop: Crop) -> dict[str, torch.Tensor]:
        return {}

    def latent_shape(self, height: int, width: int) -> LatentShape:
        return LatentShape(1, 1, 1)


class SampleViewer:
    """Reads positions of the stream as people look at them, without a model. Raises as the stream does."""

    def __init__(self, config: RunConfig, index: Index):
        self._caption = ""
        self._stream = Stream(config, index, _CaptionReader(self._note_caption), lambda u: 0)

    def view_sample(self, position: int) -> SeenSample:
        """What is trained with at `position`, but for the noise."""
        pixels = self._stream.sample(position)["pixels"].numpy()
        return SeenSample(Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0))), self._caption)

    def _note_caption(self, caption: str) -> dict[str, torch.Tensor]:
        """The stream asks for what a model reads of a caption as it is drawn."""
        self._caption = caption
        return {}


def draw_sheet(samples: list[SeenSample], columns: int = 8) -> Image.Image:
    """All `samples`, row by row, each scaled to one size, its caption below."""
    rows = -(-len(samples) // columns)
    width, height = CELL + MARGIN, CELL + LINES * LINE + MARGIN
    sheet = Image.new("RGB", (columns * width + MARGIN, rows * height + MARGIN), (200, 200, 200))
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for number, sample in enumerate(samples):
        x, y = MARGIN + number % columns * width, MARGIN + number // columns * height
        picture = _scale(sample.picture)
        sheet.paste(picture, (x + (CELL - picture.width) // 2, y + CELL - picture.height))
        shown = textwrap.wrap(sample.caption, LETTERS, max_lines=LINES, placeholder=" …") or [EMPTY]
        for line, text in enumerate(shown):
            pen.text((x, y + CELL + line * LINE), text, fill=(0, 0, 0), font=font)
    return sheet


def _scale(picture: Image.Image) -> Image.Image:
    """Its longest side is the cell's; what is made larger keeps its pixels visible."""
    factor = CELL / max(picture.size)
    size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
    return picture.resize(size, Image.Resampling.NEAREST if factor > 1 else Image.Resampling.LANCZOS)
