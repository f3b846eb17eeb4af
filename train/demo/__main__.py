"""`python -P -m lockstep train.demo prepare FOLDER`, `… compare FOLDER PIPELINE`: the demo's parts with torch."""

import shutil
import sys
from pathlib import Path

from configs.errors import LockstepError
from train.demo.grid import arrange_grid, draw_prompts
from train.demo.shapes import COLOURS, PROMPTS, SEEDS, measure_agreement, write_images

HERE = Path(__file__).parent
ENOUGH = 0.8  # share of right colours after the fine-tune
TIMESTEPS, GUIDANCE = 25, 2.0


def prepare_demo(folder: Path) -> None:
    """Put the images, the base model and the config where the demo wants them; the same bytes every time."""
    count = write_images(folder / "images")
    shutil.copytree(HERE / "base", folder / "base", dirs_exist_ok=True)
    shutil.copy(HERE / "recipe.yaml", folder / "demo.yaml")
    print(f"made {count} captioned images in {folder / 'images'}")
    print(f"made a base model that knows grey shapes in {folder / 'base'}")


def compare_pictures(folder: Path, pipeline: Path) -> None:
    """Draw the same prompts with the same seeds before and after, and count the right colours."""
    shares = {}
    for name, model in (("before", folder / "base"), ("after", pipeline)):
        images = draw_prompts(model, PROMPTS, SEEDS, TIMESTEPS, GUIDANCE)
        arrange_grid(images, PROMPTS).save(folder / f"{name}.png")
        shares[name] = measure_agreement(images, PROMPTS)
        right = round(shares[name] * len(PROMPTS))
        print(
            f"{name:<8}{right:2d} of {len(PROMPTS)} pictures have the colour asked for: {folder / name}.png",
            flush=True,
        )
    print(f"chance  {len(PROMPTS) // len(COLOURS):2d} of {len(PROMPTS)}")
    if shares["after"] < ENOUGH:
        raise LockstepError(
            f"the fine-tune did not learn the colours: {shares['after']:.0%} right, {ENOUGH:.0%} wanted"
        )


if __name__ == "__main__":
    try:
        command, *paths = sys.argv[1:]
        if command == "prepare":
            prepare_demo(*map(Path, paths))
        else:
            compare_pictures(*map(Path, paths))
    except LockstepError as error:
        sys.exit(str(error))
