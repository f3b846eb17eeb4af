"""Training of each family against plain loops that are written the way diffusers' text-to-image examples work."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from tests.ranks import run_ranks

PROGRAM = Path(__file__).with_name("train_against_examples.py")
SIZES = [(48, 40), (40, 48), (96, 64), (64, 96), (32, 32), (100, 40)]  # width and height


def test_ten_steps_of_each_family_have_the_losses_of_diffusers_examples(
    tmp_path: Path, pipeline_folder: Path, pipeline_2_folder: Path, pipeline_xl_folder: Path
) -> None:
    """To 1e-5, on three engines: epsilon, v-prediction, and Stable Diffusion XL; of the UNet, of LoRA's and of DoRA's
    adapters."""
    draw = np.random.default_rng(0)
    for number, (width, height) in enumerate(SIZES * 2):
        pixels = draw.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number:02d}.png")
        (tmp_path / f"{number:02d}.txt").write_text(f"a red circle {number}")
    families = (pipeline_folder, pipeline_2_folder, pipeline_xl_folder)
    run_ranks(1, PROGRAM, tmp_path, tmp_path / "differences.json", *families)
    differences = json.loads((tmp_path / "differences.json").read_text())
    assert list(differences) == [f"{folder}: {trained}" for folder in families for trained in ("UNet", "adapters")]
    for family, found in differences.items():
        assert len(found) == 10, family
        assert max(found) <= 1e-5, (family, found)
