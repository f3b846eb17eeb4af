"""`python -P -m lockstep train.demo prepare FOLDER IMAGES`, `… compare FOLDER IMAGES PIPELINE`: what needs torch."""

import shutil
import sys
from pathlib import Path

from configs.errors import LockstepError
from train.demo.grid import arrange_grid, draw_prompts
from train.demo.image_sets import SETS

HERE = Path(__file__).parent
TIMESTEPS, GUIDANCE = 25, 2.0


def prepare_demo(folder: Path, name: str) -> None:
    """Put the images, the base model and the config where the demo wants them; the same bytes every time."""
    images = SETS[name]
    count = images.write(folder / "images")
    shutil.copytree(HERE / "base", folder / "base", dirs_exist_ok=True)
    shutil.copy(HERE / f"{name}.yaml", folder / "demo.yaml")
    print(f"made {count} captioned images in {folder / 'images'}")
    if images.licence:
        print(f"they are others' work: {images.licence}")
    print(f"made a base model that knows grey shapes in {folder / 'base'}")


def compare_pictures(folder: Path, name: str, pipeline: Path) -> None:
    """Draw the same prompts with the same seeds before and after, and measure what was learned."""
    images = SETS[name]
    seeds = list(range(len(images.prompts)))
    learned = 0.0
    for when, model in (("before", folder / "base"), ("after", pipeline)):
        pictures = draw_prompts(model, images.prompts, seeds, TIMESTEPS, GUIDANCE, images.side)
        arrange_grid(pictures, images.prompts).save(folder / f"{when}.png")
        learned = images.measure(pictures)
        print(f"{when:<8}{images.describe(learned)}: {folder / when}.png", flush=True)
    print(images.reference)
    if images.licence:
        _name_licence(pipeline / "README.md", images.licence)
    if learned < images.enough:
        raise LockstepError(f"the fine-tune did not learn the colours: {images.describe(learned)}")


def _name_licence(card: Path, licence: str) -> None:
    """Under the pictures, and in the model card."""
    line = f"The images that it learned from: {licence}."
    print(line)
    text = card.read_text(encoding="utf-8")
    if line not in text:
        card.write_text(f"{text}\n{line}\n", encoding="utf-8")


if __name__ == "__main__":
    try:
        command, folder, *rest = sys.argv[1:]
        if command == "prepare":
            prepare_demo(Path(folder), *rest)
        else:
            compare_pictures(Path(folder), rest[0], Path(rest[1]))
    except LockstepError as error:
        sys.exit(str(error))
