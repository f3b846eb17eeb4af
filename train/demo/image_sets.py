"""The image sets that `lockstep demo` can teach: what is written, drawn before and after, and measured."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from train.demo import openmoji, shapes


@dataclass(frozen=True)
class ImageSet:
    """One of them; its fine-tune is NAME.yaml beside this file."""

    write: Callable[[Path], int]  # an imagefolder; answers how many images
    side: int  # pixels, of a picture
    prompts: Sequence[str]
    measure: Callable[[Sequence[Image.Image]], float]  # what the pictures of the prompts have learned
    enough: float  # of it, after the fine-tune
    describe: Callable[[float], str]
    reference: str  # a line to compare with
    licence: str | None = None


def _measure_right_colours(images: Sequence[Image.Image]) -> float:
    return shapes.measure_agreement(list(images), shapes.PROMPTS)


def _describe_right_colours(share: float) -> str:
    count = len(shapes.PROMPTS)
    return f"{round(share * count):2d} of {count} pictures have the colour asked for"


def _describe_colourfulness(levels: float) -> str:
    return f"a pixel is {levels:4.1f} of 255 levels from grey"


SETS = {
    "shapes": ImageSet(
        write=shapes.write_images,
        side=shapes.SIZE,
        prompts=shapes.PROMPTS,
        measure=_measure_right_colours,
        enough=0.8,
        describe=_describe_right_colours,
        reference=f"chance  {len(shapes.PROMPTS) // len(shapes.COLOURS):2d} of {len(shapes.PROMPTS)}",
    ),
    "openmoji": ImageSet(
        write=openmoji.write_drawings,
        side=shapes.SIZE,
        prompts=openmoji.EMOJI_PROMPTS,
        measure=openmoji.measure_colourfulness,
        enough=10.0,
        describe=_describe_colourfulness,
        reference=f"drawings {_describe_colourfulness(18.7)}",
        licence=openmoji.LICENCE,
    ),
}
